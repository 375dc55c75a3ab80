"""The batch stream: features read, moved and widened once for all runs of a stack.

The stream walks over image slots, each image as often as it has captions. Runs whose noise differs share
the image side of every batch and differ only in the caption that a slot gets. All randomness of training
(the order, the seeds of dropout) lies here and follows from one seed and the epoch, so a run sees
the same batches alone and in any stack, and again after a restart.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from itmfeat.cache import FeatureFile, Gather, Ragged
from itmfeat.errors import UsageError
from itmfeat.pairs import Ints, slot_captions

T = TypeVar("T")
Source = Callable[[Tensor], Ragged]
"""Rows of a feature file (B,) -> their vectors."""


@dataclass(frozen=True)
class Side:
    """One modality of a batch. N = 1 if all runs share it, else the number of different noises."""

    vectors: Tensor  # (N, B, L, D) in the dtype of the cache
    lengths: Tensor  # (N, B)
    drop_seed: int | None = None  # of the head's dropout in this batch; None is no dropout

    def to(self, device: torch.device) -> "Side":
        """The same on a device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self
        vectors = self.vectors.to(device, non_blocking=True)
        return Side(vectors, self.lengths.to(device, non_blocking=True), self.drop_seed)

    def pinned(self) -> "Side":
        """The same in page-locked memory."""
        return Side(self.vectors.pin_memory(), self.lengths.pin_memory(), self.drop_seed)


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


def pooled_source(file: FeatureFile, rows: Ints, step: int = 1024) -> Source:
    """The mean vector of each item, kept in memory as float32 for the given rows.

    A mean-pooled head needs nothing else of an item: the mean of linear maps is the map of the mean. The
    means come from the file where it has them, else all vectors are read once.
    """
    chosen = torch.from_numpy(rows)
    position = torch.full((len(file),), -1)
    position[chosen] = torch.arange(len(rows))
    if file.has_means:
        table = file.tensor("pooled").index_select(0, chosen)
    else:
        gather = Gather(file)
        table = torch.zeros(len(rows), file.dim)
        for start in range(0, len(rows), step):
            part = gather(chosen[start : start + step])
            lengths = part.lengths.clamp(min=1).unsqueeze(1)
            table[start : start + step] = part.vectors.sum(1, dtype=torch.float32) / lengths

    def fetch(items: Tensor) -> Ragged:
        vectors = table.index_select(0, position[items]).unsqueeze(1)
        return Ragged(vectors, torch.ones(len(items), dtype=torch.int64))

    return fetch


def prefetch(make: Callable[[int], T], count: int, depth: int = 2) -> Iterator[T]:
    """make(0), make(1), ... with the next `depth` made by a background thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(make, index) for index in range(min(depth, count)))
        for index in range(count):
            made = waiting.popleft().result()
            if index + depth < count:
                waiting.append(pool.submit(make, index + depth))
            yield made


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
        pin: bool = False,
    ) -> None:
        layouts = [np.sort(array) for array in given]
        if any(not np.array_equal(layouts[0], other) for other in layouts[1:]):
            raise UsageError("runs whose noise gives images different numbers of captions cannot be stacked")
        if batch_size > len(layouts[0]):
            raise UsageError(
                f"batch size {batch_size} is larger than the {len(layouts[0])} training captions"
            )
        self._sources, self._seed, self._pin = sources, seed, pin
        self._image_rows, self._caption_rows = (torch.from_numpy(array) for array in rows)
        self._slot_image = torch.from_numpy(layouts[0])
        self._slot_captions = torch.from_numpy(np.stack([slot_captions(array) for array in given]))
        self.batch_size = batch_size
        self.caption_count = len(rows[1])
        self.batches = len(self._slot_image) // batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; the slots that do not fill a last batch are left out of this epoch."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._slot_image), generator=random)

        def make(index: int) -> Batch:
            return self._batch(order[index * self.batch_size :][: self.batch_size], random)

        return prefetch(make, self.batches)

    def every_pair(self, epoch: int) -> Iterator[Batch]:
        """All slots in shuffled batches without dropout; the last batch is filled up from the first."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch + 500_000)  # not as in training
        order = torch.randperm(len(self._slot_image), generator=random)
        missing = -len(order) % self.batch_size
        parts = torch.cat([order, order[:missing]]).view(-1, self.batch_size)
        return prefetch(lambda index: self._batch(parts[index]), len(parts))

    def _batch(self, slots: Tensor, random: torch.Generator | None = None) -> Batch:
        images, captions = self._slot_image[slots], self._slot_captions[:, slots]
        image = _side(self._sources[0], self._image_rows[images].unsqueeze(0))
        text = _side(self._sources[1], self._caption_rows[captions])
        if random is not None:
            seeds = torch.randint(2**62, (2,), generator=random).tolist()
            image, text = replace(image, drop_seed=seeds[0]), replace(text, drop_seed=seeds[1])
        if self._pin:
            image, text = image.pinned(), text.pinned()
        return Batch(images, captions, image, text)


def _side(source: Source, rows: Tensor) -> Side:
    """Rows (N, B) -> the modality of a batch."""
    found = source(rows.flatten())
    shape = (*rows.shape, *found.vectors.shape[1:])
    return Side(found.vectors.view(shape), found.lengths.view(rows.shape))


def whole(source: Source, rows: Ints, batch_size: int) -> Iterator[Side]:
    """All items of a split in order, for embedding; in batches of B with N = 1."""
    table = torch.from_numpy(rows)
    starts = range(0, len(rows), batch_size)

    def make(index: int) -> Side:
        return _side(source, table[starts[index] :][:batch_size].unsqueeze(0))

    return prefetch(make, len(starts))
