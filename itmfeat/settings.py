"""The complete configuration of a run, from what a user says and the features that it trains on."""

from collections.abc import Sequence
from pathlib import Path

from itmfeat.config import RunConfig, configure
from itmfeat.errors import UsageError
from itmfeat.features import Features, data_of
from itmfeat.noise import checked, file_digest, seed_of


def configuration(
    features: Features,
    loss: str,
    *,
    robust: str | None = None,
    noise: float = 0.0,
    noise_protocol: str = "ncr",
    noise_seed: int | str = 96,
    noise_file: str | Path | None = None,
    head: str = "default",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    order: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The complete configuration of a run on opened features.

    `loss` may name the robust method too, as tables do: "snll+ncr". `noise_seed` may be "published": the
    seed of the index file in circulation for the dataset and ratio.
    """
    loss, plus, method = loss.partition("+")
    if plus and robust not in (None, method):
        raise UsageError(f"--loss {loss}+{method} and --robust {robust} name two methods: leave one out")
    robust = method if plus else robust
    checked(noise_protocol, noise)
    elsewhere = noise_file is not None or any(text.startswith("noise.") for text in overrides)
    if noise_seed == "published" and elsewhere:
        raise UsageError(
            "the published noise seed goes with --noise alone, not with a noise file or --set noise"
        )
    schedule = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "order": order}
    return configure(
        data_of(features),
        loss,
        head,
        overrides,
        robust,
        seed=seed,
        noise={
            "ratio": noise,
            "protocol": noise_protocol,
            "seed": seed_of(noise_seed, features.cache.index.name, noise_protocol, noise),
            "file": None if noise_file is None else str(noise_file),
            "file_digest": None if noise_file is None else file_digest(Path(noise_file)),
        },
        schedule={key: value for key, value in schedule.items() if value is not None},
    )
