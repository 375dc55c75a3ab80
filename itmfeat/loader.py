"""The batch stream: features read, moved and widened once for all runs of a stack.

The stream walks over image slots, each image as often as it has captions. Runs whose noise differs share
the image side of every batch and differ only in the caption that a slot gets. All randomness of training
(the order, the seeds of dropout) lies here and follows from one seed and the epoch, so a run sees
the same batches alone and in any stack, and again after a restart.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from itmfeat.cache import FeatureFile, Gather, Ragged, widened
from itmfeat.errors import UsageError
from itmfeat.pairs import Ints, slot_captions

T = TypeVar("T")
Order = Literal["full", "block"]

BLOCK, WINDOW = (
    256,
    32,
)  # slots that stay together in block order, and blocks that are shuffled into each other


class Source(Protocol):
    """Fetches items of a feature file: `Gather`, `Resident` or `Means`."""

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed."""

    def ahead(self, items: Tensor) -> None:
        """These items (B,) will be fetched soon."""


@dataclass(frozen=True)
class Side:
    """One modality of a batch. N = 1 if all runs share it, else the number of different noises."""

    vectors: Tensor  # (N, B, L, D) in the dtype of the cache
    lengths: Tensor  # (N, B)
    drop_seed: int | None = None  # of the head's dropout in this batch; None is no dropout
    scales: Tensor | None = None  # (N, B, L), of vectors of int8

    def to(self, device: torch.device) -> "Side":
        """The same on a device; copies from page-locked memory do not wait."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> "Side":
        """The same in page-locked memory, but for what is on a device already."""
        return self._each(lambda value: value if value.is_cuda else value.pin_memory())

    def wide(self) -> Tensor:
        """The values as float32, (N, B, L, D), widened on the device where they are."""
        return widened(self.vectors, self.scales)

    def tensors(self) -> list[Tensor]:
        """All of them."""
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if isinstance(value, Tensor)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Side":
        scales = None if self.scales is None else change(self.scales)
        return Side(change(self.vectors), change(self.lengths), self.drop_seed, scales)


@dataclass(frozen=True)
class Batch:
    """B slots: one image each, and one caption for each of N noises."""

    image_ids: Tensor  # (B,) position of the given image in its split: equal ids are positives
    captions: Tensor  # (N, B) position of the caption in its split
    image: Side
    text: Side

    def to(self, device: torch.device) -> "Batch":
        """The features on a device; ids stay where they are, they are few."""
        return Batch(self.image_ids, self.captions, self.image.to(device), self.text.to(device))


class Means:
    """The mean vector of each item, kept as float32 for the given rows, in memory or on a device.

    A mean-pooled head needs nothing else of an item: the mean of linear maps is the map of the mean. The
    means come from the file where it has them, else all vectors are read once.
    """

    def __init__(
        self, file: FeatureFile, rows: Ints, device: torch.device | None = None, step: int = 1024
    ) -> None:
        self._position = torch.full((len(file),), -1)
        self._position[torch.from_numpy(rows)] = torch.arange(len(rows))
        if file.has_means:
            file.check(rows, ["pooled"])
            table = torch.from_numpy(file.array("pooled")[rows])
        else:
            gather, table = Gather(file), torch.zeros(len(rows), file.dim)
            for start in range(0, len(rows), step):
                part = gather(torch.from_numpy(rows[start : start + step]))
                lengths = part.lengths.clamp(min=1).unsqueeze(1)
                vectors = part.vectors if part.scales is None else part.wide()
                table[start : start + step] = vectors.sum(1, dtype=torch.float32) / lengths
        self.table = table if device is None else table.to(device)  # (rows, D)

    def __call__(self, items: Tensor) -> Ragged:
        """Means of the items (B,) as one vector each."""
        places = self._position[items].to(self.table.device)
        vectors = self.table.index_select(0, places).unsqueeze(1)
        return Ragged(vectors, torch.ones(len(items), dtype=torch.int64))

    def ahead(self, items: Tensor) -> None:
        """Nothing: they are here."""


def prefetch(make: Callable[[int], T], count: int, depth: int = 2) -> Iterator[T]:
    """make(0), make(1), ... with the next `depth` made by a background thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(make, index) for index in range(min(depth, count)))
        for index in range(count):
            made = waiting.popleft().result()
            if index + depth < count:
                waiting.append(pool.submit(make, index + depth))
            yield made


class Uploads:
    """Copies batches to a CUDA device on a stream of its own, while the device computes on the last one."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Begin to copy from page-locked memory; called by the thread that gathers."""
        with torch.cuda.stream(self._stream):
            pinned = replace(batch, image=batch.image.pinned(), text=batch.text.pinned())
            moved = pinned.to(self._stream.device)
            return moved, self._stream.record_event()

    def finish(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        """Let the computation wait for the copy, and the copy's memory for the computation."""
        computing = torch.cuda.current_stream(self._stream.device)
        computing.wait_event(copied)
        for value in (*batch.image.tensors(), *batch.text.tensors()):
            value.record_stream(computing)
        return batch


class Stream:
    """Shuffled batches of a training split for a stack of runs.

    `given` holds one correspondence (C,) for each different noise of the stack; `rows` are the images and the
    captions of the split in the feature files.
    """

    def __init__(
        self,
        sources: tuple[Source, Source],
        rows: tuple[Ints, Ints],
        given: list[Ints],
        batch_size: int,
        *,
        seed: int = 0,
        order: Order = "full",
        device: torch.device | None = None,
    ) -> None:
        layouts = [np.sort(array) for array in given]
        if any(not np.array_equal(layouts[0], other) for other in layouts[1:]):
            raise UsageError("runs whose noise gives images different numbers of captions cannot be stacked")
        if batch_size > len(layouts[0]):
            raise UsageError(
                f"batch size {batch_size} is larger than the {len(layouts[0])} training captions"
            )
        self._sources, self._seed, self._order = sources, seed, order
        self._uploads = Uploads(device) if device is not None and device.type == "cuda" else None
        self._image_rows, self._caption_rows = (torch.from_numpy(array) for array in rows)
        self._slot_image = torch.from_numpy(layouts[0])
        self._slot_captions = torch.from_numpy(np.stack([slot_captions(array) for array in given]))
        self.batch_size = batch_size
        self.caption_count = len(rows[1])
        self.batches = len(self._slot_image) // batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; the slots that do not fill a last batch are left out of this epoch."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        slots = self._shuffled(random)[: self.batches * self.batch_size]
        return self._read(slots.view(-1, self.batch_size), random)

    def every_pair(self, epoch: int) -> Iterator[Batch]:
        """All slots in shuffled batches without dropout; the last batch is filled up from the first."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch + 500_000)  # not as in training
        slots = self._shuffled(random)
        missing = -len(slots) % self.batch_size
        return self._read(torch.cat([slots, slots[:missing]]).view(-1, self.batch_size))

    def _shuffled(self, random: torch.Generator) -> Tensor:
        """All slots in the order of an epoch.

        "block" reads a slow disk in long pieces: blocks of slots, and so of images, come in random order,
        and slots are shuffled within windows of several blocks.
        """
        count = len(self._slot_image)
        if self._order == "full":
            return torch.randperm(count, generator=random)
        order = torch.cat(
            [
                torch.arange(first, min(first + BLOCK, count))
                for first in (BLOCK * torch.randperm(-(-count // BLOCK), generator=random)).tolist()
            ]
        )
        for window in _pieces(order, BLOCK * WINDOW):
            window.copy_(window[torch.randperm(len(window), generator=random)])
        return order

    def _read(self, slots: Tensor, random: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of slots (batches, B), gathered by a thread while the kernel reads the next ones."""
        window = self.batch_size if self._order == "full" else BLOCK * WINDOW
        soon = torch.cat([part.sort().values for part in _pieces(slots.flatten(), window)])

        def make(index: int) -> tuple[Batch, torch.cuda.Event | None]:
            first = index * self.batch_size
            if not index:
                self._ahead(soon[:window])
            self._ahead(soon[first + window :][: self.batch_size])
            batch = self._batch(slots[index], random)
            return (batch, None) if self._uploads is None else self._uploads.start(batch)

        for batch, copied in prefetch(make, len(slots)):
            if self._uploads is None or copied is None:
                yield batch
            else:
                yield self._uploads.finish(batch, copied)

    def _ahead(self, slots: Tensor) -> None:
        for source, rows in zip(self._sources, self._rows(slots), strict=True):
            source.ahead(torch.from_numpy(np.unique(rows)))

    def _rows(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the image (1, B) and of the captions (N, B) of slots in the feature files."""
        images, captions = self._slot_image[slots], self._slot_captions[:, slots]
        return self._image_rows[images].unsqueeze(0), self._caption_rows[captions]

    def _batch(self, slots: Tensor, random: torch.Generator | None = None) -> Batch:
        rows = self._rows(slots)
        image, text = _side(self._sources[0], rows[0]), _side(self._sources[1], rows[1])
        if random is not None:
            seeds = torch.randint(2**62, (2,), generator=random).tolist()
            image, text = replace(image, drop_seed=seeds[0]), replace(text, drop_seed=seeds[1])
        return Batch(self._slot_image[slots], self._slot_captions[:, slots], image, text)


def _pieces(values: Tensor, size: int) -> list[Tensor]:
    """Views of values (n,), so many at a time."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def _side(source: Source, rows: Tensor) -> Side:
    """Rows (N, B) -> the modality of a batch."""
    found = source(rows.flatten())
    shape = (*rows.shape, *found.vectors.shape[1:])
    scales = None if found.scales is None else found.scales.view(shape[:-1])
    return Side(found.vectors.view(shape), found.lengths.view(rows.shape), scales=scales)


def whole(source: Source, rows: Ints, batch_size: int) -> Iterator[Side]:
    """All items of a split in order, for embedding; in batches of B with N = 1."""
    parts = _pieces(torch.from_numpy(rows), batch_size)

    def make(index: int) -> Side:
        for part in parts[index + 1 : index + 2]:
            source.ahead(part)
        return _side(source, parts[index].unsqueeze(0))

    return prefetch(make, len(parts))
