"""The configuration of a run: frozen, typed, strict. An unknown key is an error before anything is read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from itmfeat.errors import UsageError, unknown


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadConfig(_Strict):
    """The heads of both modalities."""

    pooling: Literal["mean", "max", "topk", "gpo"] = "mean"
    text_pooling: Literal["same", "mean", "max", "topk", "gpo"] = "same"
    projection: Literal["linear", "mlp"] = "mlp"
    dim: int = Field(512, ge=1)
    topk: int = Field(5, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)  # of whole input channels of an item
    hidden_dropout: float = Field(0.3, ge=0, lt=1)  # inside the perceptron of "mlp"

    @property
    def poolings(self) -> tuple[str, str]:
        """Of images and of texts."""
        return self.pooling, self.pooling if self.text_pooling == "same" else self.text_pooling


class NoiseConfig(_Strict):
    """Noisy correspondence of the training split."""

    ratio: float = Field(0.0, ge=0, lt=1)
    protocol: Literal["ncr", "decl", "derangement", "replacement"] = "ncr"
    seed: int = Field(96, ge=0, lt=2**32)  # the seed of most published index files
    file: str | None = None  # an .npy index instead of protocol, ratio and seed
    file_digest: str | None = None  # SHA-256 of that file


class ScheduleConfig(_Strict):
    """Optimisation, and the order of the batches."""

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(1e-3, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)  # share of all steps with a rising learning rate
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(10.0, gt=0)  # of the gradient norm of each run
    precision: Literal["float32", "bfloat16"] = "float32"
    order: Literal["full", "block"] = "full"  # "block" reads a slow disk in long pieces
    order_seed: int = Field(0, ge=0, lt=2**32)  # shared by all runs of a table, so that they can be stacked


class DataConfig(_Strict):
    """The features that a run trains on. Digests tie a finished run to the very bytes."""

    dataset: str
    dataset_digest: str
    image_backbone: str
    image_digest: str
    text_backbone: str
    text_digest: str
    captions_per_image: int = Field(5, ge=0)  # the first so many; 0 takes all


class RunConfig(_Strict):
    """Everything that determines a run."""

    data: DataConfig
    loss: dict[str, Any]  # "name" and the loss's own parameters, all of them
    robust: dict[str, Any] = {"name": "none"}  # likewise of the method of robust training
    head: HeadConfig = HeadConfig()
    noise: NoiseConfig = NoiseConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = Field(0, ge=0, lt=2**32)  # of the initial heads

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """The loss, and the method of robust training if there is one."""
        return label(self.loss["name"], self.robust["name"])

    @property
    def name(self) -> str:
        """The folder name of the run: readable, and different for every configuration."""
        data, noise = self.data, self.noise
        kind = "file" if noise.file else f"{noise.protocol}{noise.ratio:g}"
        return (
            f"{data.dataset}-{data.image_backbone}-{data.text_backbone}-{self.label}"
            f"-{kind}-s{self.seed}-{self.digest[:8]}"
        )

    def stackable(self) -> tuple[object, ...]:
        """Runs with equal values can be trained as one stack."""
        return (
            self.data.model_dump_json(),
            self.head.model_dump_json(),
            self.schedule.model_dump_json(),
            # Replaced captions change how many an image has, and so the slots of the stream.
            self.noise.model_dump_json() if self.noise.protocol == "replacement" else None,
        )


def label(loss: str, robust: str) -> str:
    """What tables and folders call a loss under a method of robust training."""
    return loss if robust == "none" else f"{loss}+{robust}"


HEADS: dict[str, dict[str, Any]] = {
    "default": {},
    "mean-linear": {"pooling": "mean", "projection": "linear"},
    "max-linear": {"pooling": "max", "projection": "linear"},
    "vse-infinity": {"pooling": "gpo", "projection": "mlp", "dim": 1024},
}
"""Presets that `--head NAME` stands for; `--set head.key=value` changes single keys of them."""


def configure(
    data: Mapping[str, Any],
    loss: str,
    head: str = "default",
    overrides: Iterable[str] = (),
    robust: str | None = None,
    **given: Any,
) -> RunConfig:
    """A complete configuration from flags. `overrides` are texts like "head.dim=1024".

    `robust` None is the method that belongs to the loss, mostly "none". `given` holds sections ("noise",
    "schedule") as dictionaries and plain keys ("seed").
    """
    from itmfeat import losses
    from itmfeat import robust as methods

    if head not in HEADS:
        raise unknown("head", head, list(HEADS))
    of_loss = losses.parameters(loss)
    method = losses.LOSSES[loss].robust if robust is None else robust
    of_method = methods.parameters(method)
    tree: dict[str, Any] = {
        "data": dict(data),
        "loss": {"name": loss, **of_loss},
        "robust": {"name": method, **of_method},
        "head": HEADS[head],
        **given,
    }
    full = _checked(tree).model_dump()
    for text in overrides:
        _override(full, text)
    losses.build(**full["loss"])  # refuses values of the wrong kind
    methods.validate(**full["robust"])
    if "use" in of_method:
        full["robust"]["use"] = methods.use(method, loss, full["robust"]["use"])
    for section, defaults in (("loss", of_loss), ("robust", of_method)):
        for key, default in defaults.items():
            if isinstance(default, float):  # 20 and 20.0 are the same run
                full[section][key] = float(full[section][key])
    return _checked(full)


def _checked(tree: dict[str, Any]) -> RunConfig:
    """The configuration of a tree; the first thing wrong with it as one sentence."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{key}: {first['msg'].lower()}, not {first['input']!r}") from None


def _override(tree: dict[str, Any], text: str) -> None:
    """Set one key of the tree from "section.key=value"."""
    path, equals, value = text.partition("=")
    section, _, key = path.partition(".")
    if not equals:
        raise UsageError(f"--set takes key=value, not {text!r}")
    places = {
        f"{outer}.{inner}"
        for outer in ("head", "noise", "schedule", "loss", "robust")
        for inner in tree[outer]
        if inner not in ("name", "file", "file_digest")  # a noise file has a flag of its own
    } | {"seed", "data.captions_per_image"}
    if path.startswith("robust") and len(tree["robust"]) == 1:
        raise UsageError("the robust method none has no parameters: name one with the loss, as in snll+ncr")
    if path not in places:
        raise unknown("key", path, sorted(places))
    target = tree[section] if key else tree
    target[key or section] = _literal(value)


def _literal(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
