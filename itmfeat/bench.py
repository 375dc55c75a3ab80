"""What bounds the training on this machine and cache: each speed beside its limit, in one run.

Gathering is measured beside a gather from a tensor in memory and beside a PyTorch DataLoader over h5py, a
training step beside the same step on batches that are in memory already, the evaluation beside the one matrix
product that it cannot do without. The turns alternate, so that other load on the machine meets all alike.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from itmfeat import retrieval
from itmfeat.cache import FeatureFile, Gather, Resident
from itmfeat.errors import DataError, Note
from itmfeat.features import Features
from itmfeat.loader import Batch
from itmfeat.machine import free_memory
from itmfeat.members import member_of
from itmfeat.residency import SHARE
from itmfeat.settings import configuration
from itmfeat.training import Trainer, choose_device, keep_freed_memory

HEADS = {"pooled": "default", "regions": "max-linear"}
WARM = 2  # steps and batches that are not counted


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int = 5
    batches: int = 20  # in a turn of a gather
    steps: int = 8  # in a turn of a training step
    sample: int = 4 << 30  # bytes of vectors at the most that the gathers choose from


def measure(
    features: Features,
    *,
    batch_size: int = 128,
    device: str = "auto",
    effort: Effort | None = None,
    note: Note,
) -> dict[str, Any]:
    """All measurements of a cache as plain data: milliseconds, GB/s, ratios to the limit, a verdict."""
    effort, where = effort or Effort(), choose_device(device)
    keep_freed_memory()
    found: dict[str, Any] = {
        "cache": str(features.cache.path),
        "image": features.image.path.stem,
        "text": features.text.path.stem,
        "batch_size": batch_size,
        "device": str(where),
        "threads": torch.get_num_threads(),
    }
    note("gathering image vectors")
    found["gather"] = gather(features.image, batch_size, effort)
    found["step"] = {}
    for kind, head in HEADS.items():
        note(f"training steps, {kind} head")
        found["step"][kind] = step(features, head, batch_size, where, effort)
    note("evaluating")
    found["evaluation"] = evaluation(features, where, effort)
    found["verdict"] = [verdict(kind, found["gather"], one) for kind, one in found["step"].items()]
    return found


def gather(file: FeatureFile, batch_size: int, effort: Effort) -> dict[str, Any]:
    """Shuffled batches of items: from the cache, from memory, and by a DataLoader over h5py."""
    allowed = min(effort.sample, int(SHARE * free_memory()))
    ends = np.cumsum(file.lengths(np.arange(len(file)))) * file.extents["features"].row_bytes
    rows = np.arange(int(np.searchsorted(ends, allowed, side="right")))
    if len(rows) < batch_size:
        raise DataError(f"{len(rows)} items of {file.path} fit in memory; choose a smaller --batch-size")
    began = time.perf_counter()
    file.check(rows, [name for name in ("features", "scales") if name in file.extents])
    checked = time.perf_counter() - began
    held, disk = Resident(file, rows, torch.device("cpu")), Gather(file)
    random = torch.Generator().manual_seed(0)
    took: dict[str, list[float]] = {"cache": [], "memory": []}
    for _ in range(effort.rounds):
        batches = [torch.randint(len(rows), (batch_size,), generator=random) for _ in range(effort.batches)]
        for name, source in (("cache", disk), ("memory", held)):
            took[name] += [_seconds(partial(source, items)) for items in batches]
    took["h5py"] = [_h5py_batch(file, rows, batch_size, effort.batches) for _ in range(2)]
    size = float(ends[len(rows) - 1]) / len(rows) * batch_size
    times = {name: statistics.median(values) for name, values in took.items()}
    return {
        "batch_mb": size / 1e6,
        **{name: {"ms": 1e3 * seconds, "gb_per_s": size / seconds / 1e9} for name, seconds in times.items()},
        "of_memory": times["memory"] / times["cache"],
        "over_h5py": times["h5py"] / times["cache"],
        "check": {"seconds": checked, "gb_per_s": float(ends[len(rows) - 1]) / checked / 1e9},
        "items": len(rows),
    }


class _Rows(Dataset[Tensor]):
    """Items by h5py, as published loaders read them; each worker opens the file itself."""

    def __init__(self, file: FeatureFile, rows: NDArray[np.int64]) -> None:
        self._path, self._offsets, self._rows = file.path, file.offsets, rows
        self._features: h5py.Dataset | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        if self._features is None:
            self._features = h5py.File(self._path, "r", locking=False)["features"]
        first, last = self._offsets[self._rows[index] : self._rows[index] + 2]
        return torch.from_numpy(self._features[first:last])


def _h5py_batch(file: FeatureFile, rows: NDArray[np.int64], batch_size: int, batches: int) -> float:
    """Seconds that a batch takes a DataLoader with a worker a core, once it runs."""
    workers = min(8, os.cpu_count() or 1)
    padded = partial(pad_sequence, batch_first=True)
    loader = DataLoader(
        _Rows(file, rows),
        batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=None if file.uniform else padded,
        generator=torch.Generator().manual_seed(0),
    )
    every = iter(loader)
    batches = max(1, min(batches, len(loader) - 3 * workers))
    for _ in range(min(3 * workers, len(loader) - batches)):  # what the workers have prepared meanwhile
        next(every)
    return _seconds(lambda: [next(every) for _ in range(batches)]) / batches


def step(
    features: Features, head: str, batch_size: int, device: torch.device, effort: Effort
) -> dict[str, Any]:
    """A training step (InfoNCE) fed from the cache on the disk, and the same step on batches in memory."""
    config = configuration(features, "infonce", head=head, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as runs:  # stays empty
        trainer = Trainer([member_of(config, features, Path(runs))], features, device, "disk")
    trainer.stack.train()
    stream = _forever(trainer)
    ready = [next(stream).to(device) for _ in range(WARM + effort.steps)]
    took: dict[str, list[float]] = {"cache": [], "memory": []}
    for _ in range(effort.rounds):
        for name, source in (("cache", stream), ("memory", iter(ready))):
            turn = partial(_step, trainer, source, device)
            times = [_seconds(turn) for _ in range(WARM + effort.steps)]
            took[name] += times[WARM:]
    cache, memory = (statistics.median(took[name]) for name in ("cache", "memory"))
    steps = trainer.stream.batches
    return {
        "head": head,
        "cache_ms": 1e3 * cache,
        "memory_ms": 1e3 * memory,
        "over_memory": cache / memory,
        "epoch_seconds": cache * steps,
        "steps": steps,
    }


def _forever(trainer: Trainer) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from trainer.stream.epoch(epoch)
        epoch += 1


def _step(trainer: Trainer, batches: Iterator[Batch], device: torch.device) -> None:
    trainer.update(next(batches), 0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluation(features: Features, device: torch.device, effort: Effort, dim: int = 512) -> dict[str, Any]:
    """An evaluation of the test split's size, on random embeddings, beside its one matrix product."""
    pairs = features.pairs("test", 5)
    random = torch.Generator().manual_seed(0)
    owner = torch.from_numpy(pairs.caption_image)
    image = normalize(torch.randn(len(pairs.images), dim, generator=random), dim=1)
    text = normalize(image[owner] + 0.3 * torch.randn(len(owner), dim, generator=random), dim=1)
    image, text, owner = image.to(device), text.to(device), owner.to(device)
    scores = torch.empty(len(image), len(text), device=device)
    work: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(image, text.T, out=scores).sum().item(),
        "evaluation": lambda: retrieval.evaluate(image, text, owner, "full"),
    }
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(effort.rounds):
        for name, call in work.items():
            took[name].append(_seconds(call))
    times = {name: statistics.median(values) for name, values in took.items()}
    return {
        "images": len(image),
        "captions": len(text),
        "dim": dim,
        "product_ms": 1e3 * times["product"],
        "evaluation_ms": 1e3 * times["evaluation"],
        "products": times["evaluation"] / times["product"],
    }


def verdict(kind: str, gathered: dict[str, Any], stepped: dict[str, Any]) -> str:
    """One sentence on what bounds the training with a head."""
    cache, memory = stepped["cache_ms"], stepped["memory_ms"]
    if cache <= 1.1 * memory:
        return (
            f"{kind}: bound by the computation of a step ({memory:.1f} ms); with features from the cache it "
            f"takes {100 * cache / memory:.0f} % of the time on memory"
        )
    return (
        f"{kind}: bound by reading: a step takes {cache:.1f} ms from the cache and {memory:.1f} ms on memory "
        f"(a gather {gathered['cache']['ms']:.1f} ms); try --resident ram, --order block or int8"
    )


def _seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
