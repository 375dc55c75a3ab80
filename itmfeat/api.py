"""The functions behind the commands, for scripts and notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itmfeat import retrieval
from itmfeat.cache import find_cache
from itmfeat.config import RunConfig, configure
from itmfeat.errors import DataError, UsageError
from itmfeat.features import Features, data_of, open_features, reopen
from itmfeat.loader import whole
from itmfeat.noise import file_digest
from itmfeat.runs import Run, open_run
from itmfeat.stack import embed, load_heads
from itmfeat.training import EMBED_BATCH, Progress, choose_device, train_stack


def configuration(
    features: Features,
    loss: str,
    *,
    noise: float = 0.0,
    noise_protocol: str = "ncr",
    noise_seed: int = 96,
    noise_file: str | Path | None = None,
    head: str = "default",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The complete configuration of a run on opened features."""
    if not 0 <= noise < 1:
        raise UsageError(f"the noise ratio must lie in [0, 1), not {noise:g}")
    schedule = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    return configure(
        data_of(features),
        loss,
        head,
        overrides,
        seed=seed,
        noise={
            "ratio": noise,
            "protocol": noise_protocol,
            "seed": noise_seed,
            "file": None if noise_file is None else str(noise_file),
            "file_digest": None if noise_file is None else file_digest(Path(noise_file)),
        },
        schedule={key: value for key, value in schedule.items() if value is not None},
    )


def train(
    loss: str,
    noise: float = 0.0,
    *,
    cache: str | Path | None = None,
    image_backbone: str | None = None,
    text_backbone: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    resume: bool = False,
    progress: Progress = lambda done, total, line: None,
    **settings: Any,
) -> Path:
    """Train one run and return its folder; `settings` are those of `configuration`.

    An unfinished run of the same configuration goes on where it was. A finished one is an error, unless
    `resume` says that it may be taken as it is.
    """
    path = find_cache(None if cache is None else Path(cache))
    features = open_features(path, image_backbone, text_backbone)
    config = configuration(features, loss, noise=noise, **settings)
    run = Run(Path(runs) / config.name)
    if run.finished:
        if resume:
            return run.path
        raise DataError(
            f"{run.path} exists and is finished: see `itmfeat eval {run.path}`, or pass --resume to take it "
            "as it is, another --seed, or another --runs folder"
        )
    return train_stack([config], path, Path(runs), device, progress)[0]


def evaluate(
    run: str | Path,
    split: str = "test",
    protocol: str = "auto",
    *,
    cache: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate a finished run on a split: recalls in percent, ranks, rSum."""
    found = open_run(Path(run))
    if not found.finished:
        raise DataError(f"{run} is not finished; repeat its train command, it resumes")
    config = found.config()
    path = Path(cache) if cache else Path(found.read("manifest.json")["cache"])
    features = reopen(path, config.data)
    where = choose_device(device)
    image, text, caption_image = embeddings(found, config, features, split, where)
    return dict(retrieval.evaluate(image, text, caption_image, protocol=protocol, split=split))


def embeddings(
    run: Run, config: RunConfig, features: Features, split: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised embeddings of a split, images (I, E) and captions (C, E), and caption -> image (C,)."""
    from safetensors.torch import load_file

    pairs = features.pairs(split, config.data.captions_per_image)
    sources = features.sources(config.head, pairs.images, pairs.captions)
    image_head, text_head = load_heads(config.head, [load_file(run.path / "head.safetensors")])
    image = embed(image_head.to(device), whole(sources[0], pairs.images, EMBED_BATCH), device)
    text = embed(text_head.to(device), whole(sources[1], pairs.captions, EMBED_BATCH), device)
    return image[0], text[0], torch.from_numpy(pairs.caption_image).to(device)


def train_table(
    cache: Path,
    losses: Sequence[str],
    noises: Sequence[float],
    runs: Path,
    device: str = "auto",
    progress: Progress = lambda done, total, line: None,
    **settings: Any,
) -> list[Path]:
    """Train losses x noise ratios as one stack, in one pass over the features; finished runs are kept."""
    features = open_features(cache)
    configs = [configuration(features, loss, noise=noise, **settings) for noise in noises for loss in losses]
    missing = [config for config in configs if not Run(runs / config.name).finished]
    if missing:
        train_stack(missing, cache, runs, device, progress)
    return [runs / config.name for config in configs]


__all__ = ["configuration", "embeddings", "evaluate", "train", "train_table"]
