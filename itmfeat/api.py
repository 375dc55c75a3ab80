"""The functions behind the commands, for scripts and notebooks."""

from pathlib import Path
from typing import Any

import torch

from itmfeat import retrieval
from itmfeat.cache import find_cache, open_cache
from itmfeat.config import RunConfig
from itmfeat.errors import DataError, Note, silent
from itmfeat.features import Features, open_features, reopen
from itmfeat.loader import Means
from itmfeat.noise import (
    PER_IMAGE,
    Noisy,
    checked,
    cluster,
    clusters,
    corrupt,
    described,
    seed_of,
)
from itmfeat.pairs import Ints, split_pairs
from itmfeat.runs import Run, open_run
from itmfeat.settings import configuration
from itmfeat.stack import embed_pairs, joined, load_heads
from itmfeat.training import Progress, choose_device, train_stack


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
    resident: str = "auto",
    verify: bool = False,
    progress: Progress = lambda done, total, line: None,
    note: Note = silent,
    **settings: Any,
) -> Path:
    """Train one run and return its folder; `settings` are those of `configuration`.

    `resident` (auto, gpu, ram, disk) says where the features stay, `note` is told where; `verify` compares
    every byte of them before the start, not only what is read when it is read first.

    An unfinished run of the same configuration goes on where it was. A finished one is an error, unless
    `resume` says that it may be taken as it is.
    """
    path = find_cache(None if cache is None else Path(cache))
    features = open_features(path, image_backbone, text_backbone)
    config = configuration(features, loss, noise=noise, **settings)
    run = Run(Path(runs) / config.name)
    if run.finished:
        run.tidy()
        if resume:
            return run.path
        raise DataError(
            f"{run.path} exists and is finished: see `itmfeat eval {run.path}`, or pass --resume to take it "
            "as it is, another --seed, or another --runs folder"
        )
    return train_stack(
        [config], path, Path(runs), device, progress, resident=resident, verify=verify, note=note
    )[0]


def evaluate(
    run: str | Path,
    split: str = "test",
    protocol: str = "auto",
    *,
    cache: str | Path | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """Evaluate a finished run on a split: recalls in percent, ranks, rSum.

    `note` is told of images without features, which are left out.
    """
    found = open_run(Path(run))
    if not found.finished:
        raise DataError(f"{run} is not finished; repeat its train command, it resumes")
    config = found.config()
    path = Path(cache) if cache else Path(found.read("manifest.json")["cache"])
    features = reopen(path, config.data)
    if features.missing:
        note(features.missing)
    where = choose_device(device)
    image, text, caption_image = embeddings(found, config, features, split, where)
    return dict(retrieval.evaluate(image, text, caption_image, protocol=protocol, split=split))


def embeddings(
    run: Run, config: RunConfig, features: Features, split: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised embeddings of a split, images (I, E) and captions (C, E), and caption -> image (C,)."""
    pairs = features.pairs(split, config.data.captions_per_image)
    sources = features.sources(config.head, pairs.images, pairs.captions, device)
    heads = load_heads(config.head, run.read_tensors("head.safetensors"), device)
    image, text = map(joined, embed_pairs(heads, sources, pairs, device))
    return image, text, torch.from_numpy(pairs.caption_image).to(device)


def true_correspondence(cache: str | Path | None = None) -> Ints:
    """The true image of each training caption, (C,), of the first five captions of an image."""
    path = find_cache(None if cache is None else Path(cache))
    found = open_cache(path)
    return split_pairs(found.index, "train", PER_IMAGE, found.missing()).caption_image


def noise_index(
    noise: float,
    protocol: str,
    seed: int | str,
    *,
    cache: str | Path | None = None,
    image_backbone: str | None = None,
    groups: int | None = None,
) -> tuple[Noisy, int]:
    """Draw the noise of a cache's training split, and the number that its seed stands for.

    Beside the protocols of `corrupt` there is "cluster", for which the mean image features are put into so
    many groups that look alike.
    """
    checked("ncr" if protocol == "cluster" else protocol, noise)
    found = open_cache(find_cache(None if cache is None else Path(cache)))
    number = seed_of(seed, found.index.name, protocol, noise)
    pairs = split_pairs(found.index, "train", PER_IMAGE, found.missing())
    if protocol != "cluster":
        return corrupt(pairs.caption_image, protocol, noise, number), number
    means = Means(found.open("image", image_backbone), pairs.images).table.numpy()  # (I, D)
    given = cluster(pairs.caption_image, noise, number, clusters(means, groups, number))
    return described(given, pairs.caption_image), number


__all__ = [
    "configuration",
    "embeddings",
    "evaluate",
    "noise_index",
    "train",
    "true_correspondence",
]
