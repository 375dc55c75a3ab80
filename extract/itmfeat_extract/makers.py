"""What a range is made with: a backbone and what goes into it. And the recipe for one in another process."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from itmfeat.errors import DataError, ItmfeatError
from itmfeat_extract import backbones
from itmfeat_extract.backbones import Encoded, ImageBackbone, TextBackbone
from itmfeat_extract.backbones.lanes import encode_pictures, joined
from itmfeat_extract.corpus import Corpus
from itmfeat_extract.corpus.base import Opener
from itmfeat_extract.pictures import decode_named
from itmfeat_extract.stages import Maker
from itmfeat_extract.tokens import TokenPolicy

TEXT_BATCH = 512
VERSIONS = ("torch", "transformers", "pillow", "numpy", "h5py", "itmfeat")


class Fitting:
    """Batches as large as the memory of a device: whole ranges, halved when it is full, doubled again later.

    What else runs on the device may have gone, or its captions were long; each time the memory is full, the
    next attempt comes after twice as many batches. On a GPU other batch sizes may give other roundings in
    the last bit: a range that was halved equals one that was not only within the tolerance between devices.
    """

    def __init__(self) -> None:
        self.step: int | None = None  # items at once; None while whole batches fit
        self._fitted, self._patience = 0, 1  # batches of that step so far, and how many to double it

    def __call__(self, encode: Callable[..., Encoded], *batch: torch.Tensor) -> Encoded:
        """`encode` of tensors (B, ...), at once or in parts that fit."""
        count = len(batch[0])
        while True:
            step = min(self.step or count, count)
            try:
                parts = [torch.split(tensor, step) for tensor in batch]
                encoded = joined([encode(*part) for part in zip(*parts, strict=True)])
                self._grow(count)
                return encoded
            except torch.OutOfMemoryError:
                if step == 1:
                    raise ItmfeatError(
                        "the device has no memory for the forward pass of a single item; "
                        "close what else runs on it, or choose another --device or backbone"
                    ) from None
            # Here, where the failed pass holds no tensors any more.
            self.step, self._fitted, self._patience = (step + 1) // 2, 0, 2 * self._patience
            torch.cuda.empty_cache()

    def _grow(self, count: int) -> None:
        """Double the step when enough batches of `count` items were cut to it and did fit."""
        if self.step is None or count <= self.step:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self.step, self._fitted = 2 * self.step, 0


@dataclass(frozen=True, eq=False)
class Images:
    """Image features; an item is the name of an image, or None for one that cannot be read."""

    backbone: ImageBackbone
    policy: TokenPolicy
    root: Path
    opener: Opener | None = None  # where images are no files of their own
    fitting: Fitting = field(default_factory=Fitting)

    @property
    def together(self) -> int:
        """On the CPU two ranges, since its cores do not end one at the same moment."""
        return _together(self.backbone)

    def prepare(
        self, items: list[str | None], pool: ThreadPoolExecutor
    ) -> Callable[[], list[NDArray[np.uint8] | None]]:
        """Begin to decode: pictures (H, W, 3), or None where no name is."""
        futures = [None if name is None else pool.submit(self.decode, name) for name in items]
        return lambda: [None if future is None else future.result() for future in futures]

    def decode(self, name: str) -> NDArray[np.uint8]:
        """A picture as the backbone takes it, (H, W, 3)."""
        return decode_named(self.root, name, self.opener, self.backbone.preprocess)

    def make(self, prepared: list[NDArray[np.uint8] | None]) -> dict[str, Any]:
        """Pictures of a range -> the payloads of `TokenPolicy.apply`.

        A blank stands for one that is not there: it keeps the batch its size, and its vectors are dropped.
        """
        present = np.array([picture is not None for picture in prepared])
        blank = self.backbone.preprocess(Image.new("RGB", (1, 1)))
        pictures = [blank if picture is None else picture for picture in prepared]
        encoded = encode_pictures(self.backbone, pictures, partial(self.fitting, self.backbone.encode))
        if present.all():
            return self.policy.apply(encoded, self.backbone)
        keep = torch.from_numpy(present).to(encoded.vectors.device)
        kept: dict[str, Any] = {
            name: None if each is None else each[keep] for name, each in vars(encoded).items()
        }
        payloads = self.policy.apply(Encoded(**kept), self.backbone)
        if encoded.pooled is not None:
            payloads["pooled"] = encoded.pooled.masked_fill(~keep.unsqueeze(1), 0)
        return payloads


@dataclass(frozen=True, eq=False)
class Texts:
    """Token features; an item is the token ids of a caption (L,)."""

    backbone: TextBackbone
    fitting: Fitting = field(default_factory=Fitting)

    @property
    def together(self) -> int:
        """As for images."""
        return _together(self.backbone)

    def prepare(
        self, items: list[NDArray[np.int32]], pool: ThreadPoolExecutor
    ) -> Callable[[], list[NDArray[np.int32]]]:
        """Nothing is to be decoded."""
        return lambda: items

    def make(self, prepared: list[NDArray[np.int32]]) -> dict[str, Any]:
        """Token ids of a range -> `features` (tokens, D) and `pooled` (items, P), if the backbone has it.

        The range is batched by length, to pad little.
        """
        backbone = self.backbone
        lengths = np.array([len(ids) for ids in prepared])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        vectors = np.empty((int(starts[-1]), backbone.dim), np.float32)
        pooled = np.empty((len(prepared), backbone.pooled_dim), np.float32) if backbone.pooled_dim else None
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), TEXT_BATCH):
            chosen = order[first : first + TEXT_BATCH]
            width = backbone.pad_to or int(lengths[chosen].max())
            padded = torch.full((len(chosen), width), backbone.pad_id)
            for row, item in enumerate(chosen):
                padded[row, : lengths[item]] = torch.from_numpy(prepared[item])
            encoded = self.fitting(backbone.encode, padded, torch.from_numpy(lengths[chosen]))
            found = encoded.vectors.float().cpu().numpy()
            for row, item in enumerate(chosen):
                vectors[starts[item] : starts[item + 1]] = found[row, : lengths[item]]
            if pooled is not None and encoded.pooled is not None:
                pooled[chosen] = encoded.pooled.float().cpu().numpy()
        return _present(features=vectors, pooled=pooled)


def _together(backbone: ImageBackbone | TextBackbone) -> int:
    return 2 if backbone.placement.device.type == "cpu" else 1


def _present(**payloads: Any) -> dict[str, Any]:
    return {name: value for name, value in payloads.items() if value is not None}


@dataclass(frozen=True)
class Recipe:
    """How another process gets the same maker. Hashable and picklable, so that it is made once a process."""

    kind: backbones.Kind
    backbone: str
    device: str
    policy: str
    root: str
    fingerprint: str  # JSON: of the backbone that the command itself loaded
    options: tuple[tuple[str, Any], ...] = ()  # what else `load_image` or `load_text` takes
    dataset: str = ""  # its name: tells openers apart, which are not compared
    opener: Opener | None = field(default=None, compare=False)

    @classmethod
    def of(cls, kind: backbones.Kind, name: str, loaded: Any, device: str, **given: Any) -> "Recipe":
        """For a backbone that was loaded here by that name; `given` are a policy, a corpus and options."""
        policy, corpus = str(given.pop("policy", "")), given.pop("corpus", None)
        recipe = cls(kind, name, device, policy, "", fingerprint_of(loaded), tuple(sorted(given.items())))
        if not isinstance(corpus, Corpus):
            return recipe
        return replace(recipe, root=str(corpus.root), dataset=corpus.name, opener=corpus.opener)

    def maker(self) -> Maker:
        """Load the backbone; an error where it, or a library, is not what the command has."""
        options = dict(self.options)
        if self.kind == "text":
            text = backbones.load_text(self.backbone, self.device, **options)
            self._check(text)
            return Texts(text)
        image = backbones.load_image(self.backbone, self.device, **options)
        self._check(image)
        return Images(image, TokenPolicy.parse(self.policy), Path(self.root), self.opener)

    def _check(self, loaded: ImageBackbone | TextBackbone) -> None:
        if fingerprint_of(loaded) != self.fingerprint:
            import platform

            raise DataError(
                f"{self.backbone} or its libraries on {platform.node()} differ from those of the command; "
                "install the same weights and versions on every machine"
            )


def fingerprint_of(backbone: ImageBackbone | TextBackbone) -> str:
    """Weights, precision and library versions as JSON: equal where the features are."""
    return json.dumps([backbone.fingerprint(), versions(backbone)], sort_keys=True)


def versions(backbone: ImageBackbone | TextBackbone) -> dict[str, str]:
    """The libraries that decide values, and what compiled the forward pass, if anything did.

    Like another version of a library, compiling rounds otherwise: a finished file stays what it is, and an
    unfinished one is gone on with in the way it was begun.
    """
    compiled = {"torch.compile": "inductor"} if backbone.placement.compiled else {}
    return {name: version(name) for name in VERSIONS} | compiled
