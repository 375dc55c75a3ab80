"""The functions behind the commands, for scripts and notebooks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from itmfeat import retrieval
from itmfeat.cache import find_cache, open_cache
from itmfeat.config import RunConfig
from itmfeat.errors import DataError, Note, UsageError, silent, unknown
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
from itmfeat.pairs import Ints, Pairs, split_pairs
from itmfeat.runs import Run, open_run
from itmfeat.settings import configuration
from itmfeat.stack import embed_pairs, joined, load_heads
from itmfeat.training import Logged, Progress, choose_device, train_stack


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
    logged: Logged = lambda run: None,
    note: Note = silent,
    **settings: Any,
) -> Path:
    """Train one run and return its folder; `settings` are those of `configuration`.

    `resident` (auto, gpu, ram, disk) says where the features stay, `note` is told where; `verify` compares
    every byte of them before the start, not only what is read when it is read first. `logged` is called with
    the run folder after each epoch.

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
        [config],
        path,
        Path(runs),
        device,
        progress,
        resident=resident,
        verify=verify,
        logged=logged,
        note=note,
    )[0]


def evaluate(
    run: str | Path | Sequence[str | Path],
    split: str = "test",
    protocol: str = "auto",
    *,
    captions: int | None = None,
    ensemble: bool = False,
    bootstrap: int = 0,
    cache: str | Path | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """Evaluate a finished run on a split: recalls in percent, ranks, rSum.

    `captions` is how many of each image are ranked, the first so many, 0 for all; by default what the run was
    configured with. With `ensemble` several runs of one dataset are ranked by the mean of their similarities.
    `bootstrap` resamples of the images give every metric a 95 % interval ("interval" in the result). For the
    test split they need no features where the run keeps its ranks. `note` is told of images without
    features, which are left out.
    """
    paths = [Path(run)] if isinstance(run, str | Path) else [Path(path) for path in run]
    _check_request(paths, captions, ensemble)
    if bootstrap < 0:
        raise UsageError(f"--bootstrap takes a number of resamples, as 1000, not {bootstrap}")
    if bootstrap and protocol == "eccv":
        raise UsageError("--bootstrap goes with protocols of recalls; leave out --protocol eccv")
    as_finished = split == "test" and not ensemble and captions is None and cache is None
    held = _held(finished(paths[0]), protocol) if bootstrap and as_finished else None
    result, tensors = held or _ranked(paths, split, protocol, captions, cache, device, note)
    if ensemble:
        result["ensemble"] = [path.resolve().name for path in paths]
    for own in (result, result.get("5x1k")) if bootstrap else ():
        if own:
            own["interval"] = retrieval.intervals(
                retrieval.from_tensors(tensors, own["protocol"])[1], bootstrap
            )
    return result


def _check_request(paths: list[Path], captions: int | None, ensemble: bool) -> None:
    """A UsageError unless the number of runs fits and `captions` can be ranked."""
    if captions is not None and captions < 0:
        raise UsageError(f"--captions must be at least 1, or 0 for all, not {captions}")
    if len(paths) > 1 and not ensemble:
        raise UsageError("several runs are evaluated as one, with --ensemble; without it name one run")
    if ensemble and len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UsageError("--ensemble takes two different runs or more")


def finished(run: str | Path) -> Run:
    """An existing run that is finished."""
    found = open_run(Path(run))
    if not found.finished:
        raise DataError(f"{run} is not finished; repeat its train command, it resumes")
    return found


def opened(path: str | Path, cache: str | Path | None = None) -> tuple[Run, RunConfig, Features]:
    """A finished run, and the features that it was made with, in `cache` if they moved."""
    run = finished(path)
    config = run.config()
    return run, config, reopen(Path(cache or run.read("manifest.json")["cache"]), config.data)


def rank_tensors(
    run: Run, cache: str | Path | None = None, device: str = "auto", note: Note = silent
) -> dict[str, torch.Tensor]:
    """The ranks on the test split that a run keeps (`retrieval.RANKS_FILE`), or else from its features."""
    if (run.path / retrieval.RANKS_FILE).exists():
        return run.read_tensors(retrieval.RANKS_FILE)
    path = Path(cache) if cache else Path(run.read("manifest.json")["cache"])
    if not path.is_dir():
        raise DataError(
            f"{run.path} was made before runs kept their ranks, and its cache {path} is gone: say with "
            "--cache where it is now"
        )
    return _ranked([run.path], "test", "auto", None, path, device, note)[1]


def _held(run: Run, protocol: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Test results under a protocol and the ranks behind them, if the run keeps both."""
    if protocol not in retrieval.PROTOCOLS:
        raise unknown("protocol", protocol, retrieval.PROTOCOLS)
    if not (run.path / retrieval.RANKS_FILE).exists():
        return None
    result = run.read("results.json")
    own: dict[str, Any] | None = result
    if protocol not in ("auto", result["protocol"]):
        own = result.get(protocol)
        if own and "dropped" in result:
            own["dropped"] = result["dropped"]
    elif protocol != "auto":
        result.pop("5x1k", None)
    return (own, run.read_tensors(retrieval.RANKS_FILE)) if own else None


def _ranked(
    paths: list[Path],
    split: str,
    protocol: str,
    captions: int | None,
    cache: str | Path | None,
    device: str,
    note: Note,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Results of one run or of an ensemble, and the ranks behind them, from the features."""
    runs = [opened(path, cache) for path in paths]
    pairs = _shared_pairs(runs, split, captions)
    for missing in dict.fromkeys(features.missing for _, _, features in runs):
        if missing:
            note(missing)
    where = choose_device(device)
    sides = zip(*(embeddings(*each, split, where, captions)[:2] for each in runs), strict=True)
    image, text = (_averaged(list(side)) for side in sides)
    ranks: dict[str, retrieval.Ranks] = {}
    index = runs[0][2].cache.index
    result = retrieval.evaluate_split(image, text, pairs, index, split, protocol, ranks)
    return dict(result), retrieval.to_tensors(ranks, pairs)


def _shared_pairs(opened: list[tuple[Run, RunConfig, Features]], split: str, captions: int | None) -> Pairs:
    """The pairs of the split; a DataError unless they are the same in all runs."""
    (first, config, features), *others = opened
    pairs = features.pairs(split, _per_image(config, captions))
    for run, other, own in others:
        if other.data.dataset_digest != config.data.dataset_digest:
            raise DataError(f"{first.path} and {run.path} are runs on different datasets, so no ensemble")
        theirs = own.pairs(split, _per_image(other, captions))
        if not (
            np.array_equal(pairs.images, theirs.images) and np.array_equal(pairs.captions, theirs.captions)
        ):
            raise DataError(
                f"{first.path} and {run.path} differ in the images or captions of the {split} split: give "
                "--captions if they took different numbers, and leave out a backbone that misses images"
            )
    return pairs


def _per_image(config: RunConfig, captions: int | None) -> int:
    """How many captions of an image are taken; 0 for all."""
    return config.data.captions_per_image if captions is None else captions


def _averaged(sides: list[torch.Tensor]) -> torch.Tensor:
    """Embeddings (X, E) of several runs as one (X, sum of E), whose cosines are the mean of theirs."""
    return sides[0] if len(sides) == 1 else torch.cat(sides, dim=1) / math.sqrt(len(sides))


def embeddings(
    run: Run,
    config: RunConfig,
    features: Features,
    split: str,
    device: torch.device,
    captions: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised embeddings of a split, images (I, E) and captions (C, E), and caption -> image (C,).

    `captions` of each image, by default as many as the run was configured with.
    """
    pairs = features.pairs(split, _per_image(config, captions))
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
    "finished",
    "noise_index",
    "opened",
    "rank_tensors",
    "train",
    "true_correspondence",
]
