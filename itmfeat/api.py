"""The functions behind the commands, for scripts and notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itmfeat import retrieval
from itmfeat.cache import find_cache, open_cache
from itmfeat.config import RunConfig, configure
from itmfeat.errors import DataError, Note, UsageError, silent
from itmfeat.features import Features, data_of, open_features, reopen
from itmfeat.loader import Means
from itmfeat.noise import (
    PER_IMAGE,
    Noisy,
    checked,
    cluster,
    clusters,
    corrupt,
    described,
    file_digest,
    seed_of,
)
from itmfeat.pairs import Ints, split_pairs
from itmfeat.runs import Run, open_run
from itmfeat.stack import embed_pairs, joined, load_heads
from itmfeat.training import Logged, Progress, choose_device, train_stack


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

    `noise_seed` may be "published": the seed of the index file in circulation for the dataset and ratio.
    """
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
    run: str | Path,
    split: str = "test",
    protocol: str = "auto",
    *,
    bootstrap: int = 0,
    cache: str | Path | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """Evaluate a finished run on a split: recalls in percent, ranks, rSum.

    `bootstrap` resamples of the images give every metric a 95 % interval ("interval" in the result). For the
    test split they need no features where the run keeps its ranks. `note` is told of images without
    features, which are left out.
    """
    if bootstrap < 0:
        raise UsageError(f"--bootstrap takes a number of resamples, as 1000, not {bootstrap}")
    found = finished(run)
    held = _held(found, protocol) if bootstrap and split == "test" and cache is None else None
    result, tensors = held or _ranked(found, split, protocol, cache, device, note)
    for own in (result, result.get("5x1k")) if bootstrap else ():
        if own:
            ranks = retrieval.from_tensors(tensors, own["protocol"])[1]
            own["interval"] = retrieval.intervals(ranks, bootstrap)
    return result


def finished(run: str | Path) -> Run:
    """An existing run that is finished."""
    found = open_run(Path(run))
    if not found.finished:
        raise DataError(f"{run} is not finished; repeat its train command, it resumes")
    return found


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
    return _ranked(run, "test", "auto", path, device, note)[1]


def _held(run: Run, protocol: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Test results under a protocol and the ranks behind them, if the run keeps both."""
    if not (run.path / retrieval.RANKS_FILE).exists():
        return None
    result = run.read("results.json")
    own: dict[str, Any] | None = result
    if protocol not in ("auto", result["protocol"]):
        own = result.get(protocol)
    elif protocol != "auto":
        result.pop("5x1k", None)
    return (own, run.read_tensors(retrieval.RANKS_FILE)) if own else None


def _ranked(
    run: Run, split: str, protocol: str, cache: str | Path | None, device: str, note: Note
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Results of a run on a split, and the ranks behind them, from the features of its cache."""
    config = run.config()
    path = Path(cache) if cache else Path(run.read("manifest.json")["cache"])
    features = reopen(path, config.data)
    if features.missing:
        note(features.missing)
    image, text, caption_image = embeddings(run, config, features, split, choose_device(device))
    ranks: dict[str, retrieval.Ranks] = {}
    result = retrieval.evaluate(image, text, caption_image, protocol=protocol, split=split, kept=ranks)
    return dict(result), retrieval.to_tensors(ranks, features.pairs(split, config.data.captions_per_image))


def embeddings(
    run: Run, config: RunConfig, features: Features, split: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised embeddings of a split, images (I, E) and captions (C, E), and caption -> image (C,)."""
    pairs = features.pairs(split, config.data.captions_per_image)
    sources = features.sources(config.head, pairs.images, pairs.captions, device)
    heads = load_heads(config.head, run.read_tensors("head.safetensors"), device)
    image, text = map(joined, embed_pairs(heads, sources, pairs, device))
    return image, text, torch.from_numpy(pairs.caption_image).to(device)


def train_table(
    features: Features,
    losses: Sequence[str],
    noises: Sequence[float],
    runs: Path,
    device: str = "auto",
    progress: Progress = lambda done, total, line: None,
    *,
    seeds: Sequence[int] = (0,),
    resident: str = "auto",
    **settings: Any,
) -> list[Path]:
    """Train losses x noise ratios x seeds as one stack, in one pass over the features.

    "triplet+ncr" is the loss `triplet` under the robust method `ncr`, "crcl" is `crcl` under its own.
    Finished runs are kept. `settings` are those of `configuration`, but robust, noise and seed.
    """
    parts = [loss.partition("+") for loss in losses]
    configs = [
        configuration(features, loss, robust=method or None, noise=noise, seed=seed, **settings)
        for noise in noises
        for loss, _, method in parts
        for seed in seeds
    ]
    missing = [config for config in configs if not Run(runs / config.name).finished]
    if missing:
        train_stack(missing, features.cache.path, runs, device, progress, resident=resident)
    return [runs / config.name for config in configs]


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
    "rank_tensors",
    "train",
    "train_table",
    "true_correspondence",
]
