"""Fetching shuffled items of a feature file: from the disk, or from a copy in memory.

A read goes straight from the page cache into the tensor of the batch (`preadv`), which runs at the speed of
memory and counts no mapped pages, so a file may be many times larger than the memory of the process.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.writer import TORCH_DTYPES
from itmfeat.errors import DataError

_LOAD_BYTES = 1 << 26  # of a step while a file is copied into memory


@dataclass(frozen=True)
class Ragged:
    """Vectors of a batch of items, padded to the longest, as they are stored."""

    vectors: Tensor  # (B, L, D), zeros behind each item's length
    lengths: Tensor  # (B,)
    scales: Tensor | None = None  # (B, L), what vectors of int8 are to be multiplied by

    def wide(self) -> Tensor:
        """The values as float32, (B, L, D)."""
        return widened(self.vectors, self.scales)


def widened(vectors: Tensor, scales: Tensor | None) -> Tensor:
    """Stored vectors (..., D) with the scales (...) of int8, or None -> float32."""
    wide = vectors.float()
    return wide if scales is None else wide.mul_(scales.unsqueeze(-1))


@dataclass(frozen=True)
class _Spans:
    """Where the vectors of some items lie in a file; items that follow each other are one span."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @staticmethod
    def of(file: FeatureFile, items: NDArray[np.int64]) -> "_Spans":
        first, last = file.offsets[items], file.offsets[items + 1]
        begins = np.ones(len(items), bool)
        begins[1:] = first[1:] != last[:-1]
        return _Spans(first[begins], last[np.roll(begins, -1)])


class Gather:
    """Fetches items of a feature file from the disk or the page cache; nothing stays in memory.

    Ranges are compared with their checksums when one of their items is fetched for the first time
    (`FeatureFile.check`). `ahead` asks the kernel to read items that will be fetched soon, many at once.
    """

    def __init__(self, file: FeatureFile, *, checked: bool = True) -> None:
        self.file, self._checked = file, checked
        self._names = [name for name in ("features", "scales") if name in file.extents]

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed."""
        rows = items.numpy()
        vectors, scales = self.stored(rows)
        lengths = torch.from_numpy(self.file.lengths(rows))
        regions = self.file.uniform or _alike(lengths)
        if not regions:
            return _padded(vectors, scales, lengths.cumsum(0) - lengths, lengths)
        shape = (len(rows), regions)
        return Ragged(
            vectors.view(*shape, self.file.dim), lengths, None if scales is None else scales.view(shape)
        )

    def stored(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Vectors (V, D) of items, one after another, and their scales (V,) in a file of int8."""
        if self._checked:
            self.file.check(rows, self._names)
        spans = _Spans.of(self.file, rows)
        found = {name: self._read(name, spans) for name in self._names}
        return found["features"], found.get("scales")

    def ahead(self, items: Tensor) -> None:
        """These items (B,) will be fetched soon: let the kernel start to read them, all at once."""
        spans = _Spans.of(self.file, items.numpy())
        for name in self._names:
            starts, sizes = self._bytes(name, spans)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                _advise(self.file.descriptor, start, size)

    def _bytes(self, name: str, spans: _Spans) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Position and size in bytes of each span."""
        extent = self.file.extents[name]
        width = extent.row_bytes
        return extent.offset + spans.first * width, (spans.last - spans.first) * width

    def _read(self, name: str, spans: _Spans) -> Tensor:
        """All values of the spans, one after another: (V, D), or (V,) for scales."""
        extent = self.file.extents[name]
        starts, sizes = self._bytes(name, spans)
        shape = (int((spans.last - spans.first).sum()), *extent.shape[1:])
        values = torch.empty(shape, dtype=TORCH_DTYPES[str(extent.dtype)])
        raw = memoryview(values.view(-1).view(torch.uint8).numpy().data)
        place = 0
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            self._fill(raw[place : place + size], start)
            place += size
        return values

    def _fill(self, target: memoryview, position: int) -> None:
        while target:
            count = os.preadv(self.file.descriptor, [target], position)
            if not count:
                raise DataError(f"{self.file.path} became shorter while it was read; copy it again")
            target, position = target[count:], position + count


class Resident:
    """Items of a feature file in memory, on the host or on a device, in the dtype of the file."""

    def __init__(self, file: FeatureFile, rows: NDArray[np.int64], device: torch.device) -> None:
        self.device = device
        self._position = torch.full((len(file),), -1)
        self._position[torch.from_numpy(rows)] = torch.arange(len(rows))
        self._lengths = torch.from_numpy(file.lengths(rows))
        self._regions = file.uniform or _alike(self._lengths)
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._vectors, self._scales = _loaded(file, rows, device)

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed, on the device."""
        places = self._position[items]
        if not self._regions:
            return _padded(self._vectors, self._scales, self._starts[places], self._lengths[places])
        places = places.to(self.device)
        shape = (len(items), self._regions)
        dim, scales = self._vectors.shape[1], self._scales
        held = self._vectors.view(-1, self._regions * dim)  # one row an item: one long copy
        vectors = held.index_select(0, places).view(*shape, dim)
        if scales is not None:
            scales = scales.view(-1, self._regions).index_select(0, places)
        return Ragged(vectors, torch.full(shape[:1], self._regions), scales)

    def ahead(self, items: Tensor) -> None:
        """Nothing: they are here."""


def _loaded(file: FeatureFile, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Vectors (V, D) and scales (V,) of the rows, one after another, on the device."""
    gather = Gather(file)
    ends = np.cumsum(file.lengths(rows))
    extent, count = file.extents["features"], int(ends[-1]) if len(ends) else 0
    vectors = torch.empty((count, file.dim), dtype=TORCH_DTYPES[str(extent.dtype)], device=device)
    scales = torch.empty(count, device=device) if "scales" in file.extents else None
    first = 0
    for part in np.array_split(rows, max(1, count * extent.row_bytes // _LOAD_BYTES)):
        values, factors = gather.stored(part)
        last = first + len(values)
        vectors[first:last] = values
        if scales is not None and factors is not None:
            scales[first:last] = factors
        first = last
    return vectors, scales


def _alike(lengths: Tensor) -> int:
    """The number of vectors that each of these items has, as if no other were missing; 0 if they differ."""
    return int(lengths[0]) if len(lengths) and bool((lengths == lengths[0]).all()) else 0


def _padded(vectors: Tensor, scales: Tensor | None, starts: Tensor, lengths: Tensor) -> Ragged:
    """Items whose vectors begin at `starts` (B,) of a table (V, D), padded to the longest."""
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
    inside = steps < lengths.unsqueeze(1)  # (B, L)
    rows = torch.where(inside, starts.unsqueeze(1) + steps, 0).flatten().to(vectors.device)
    outside = ~inside.to(vectors.device)
    padded = vectors.index_select(0, rows).view(*inside.shape, vectors.shape[1])
    padded.masked_fill_(outside.unsqueeze(-1), 0)
    if scales is not None:
        scales = scales.index_select(0, rows).view(inside.shape)
    return Ragged(padded, lengths, scales)


def _advise(descriptor: int, start: int, size: int) -> None:
    if size and hasattr(os, "posix_fadvise"):  # not on macOS; 0 would mean the rest of the file
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
