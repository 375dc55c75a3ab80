"""Fetching shuffled items of a feature file: from the disk, or from a copy in memory.

A file is mapped read-only, so that a gather runs at the speed of memory once its pages are cached, and the
file may be many times larger than the memory of the process: a writable mapping, even a private one that is
never written to, is refused by the kernel where it is larger than all memory.
"""

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat.cache.ranges import TORCH_DTYPES
from itmfeat.cache.reader import FeatureFile
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


@dataclass(frozen=True)
class _Table:
    """Vectors (V, D) of items one after another, where each item begins, and how long it is (n,)."""

    vectors: Tensor
    scales: Tensor | None  # (V,)
    starts: Tensor
    lengths: Tensor
    uniform: int  # vectors of every item; 0 if they differ

    def __call__(self, places: Tensor) -> Ragged:
        """The items at these places (B,), padded to the longest, on the device of the table."""
        device, dim, scales = self.vectors.device, self.vectors.shape[1], self.scales
        lengths = self.lengths[places]
        if self.uniform:  # one row an item: one long copy
            places, shape = places.to(device), (len(places), self.uniform)
            vectors = self.vectors.view(-1, self.uniform * dim).index_select(0, places)
            if scales is not None:
                scales = scales.view(-1, self.uniform).index_select(0, places)
            return Ragged(vectors.view(*shape, dim), lengths, scales)
        steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
        inside = steps < lengths.unsqueeze(1)  # (B, L)
        rows = torch.where(inside, self.starts[places].unsqueeze(1) + steps, 0).flatten().to(device)
        vectors = self.vectors.index_select(0, rows).view(*inside.shape, dim)
        vectors.masked_fill_(~inside.to(device).unsqueeze(-1), 0)
        if scales is not None:
            scales = scales.index_select(0, rows).view(inside.shape)
        return Ragged(vectors, lengths, scales)


class Gather:
    """Fetches items of a feature file from the disk or the page cache; nothing stays in memory.

    Ranges are compared with their checksums when one of their items is fetched for the first time
    (`FeatureFile.check`). `ahead` asks the kernel to read items that will be fetched soon, many at once.
    """

    def __init__(self, file: FeatureFile, *, checked: bool = True) -> None:
        self.file, self._checked = file, checked
        self._names = [name for name in ("features", "scales") if name in file.extents]
        self._mapped = _mapped(file)

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed."""
        rows = items.numpy()
        if self._mapped is None:
            lengths = torch.from_numpy(self.file.lengths(rows))
            table = _Table(*self.stored(rows), lengths.cumsum(0) - lengths, lengths, self.file.uniform)
            return table(torch.arange(len(rows)))
        self._check(rows)
        return self._mapped(items)

    def stored(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Vectors (V, D) of items, one after another, and their scales (V,) in a file of int8."""
        self._check(rows)
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

    def _check(self, rows: NDArray[np.int64]) -> None:
        extent = self.file.extents["features"]
        if os.fstat(self.file.descriptor).st_size < extent.offset + extent.nbytes:
            raise DataError(f"{self.file.path} became shorter while it was read; copy it again")
        if self._checked:
            self.file.check(rows, self._names)

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
        self._position = torch.full((len(file),), -1)
        self._position[torch.from_numpy(rows)] = torch.arange(len(rows))
        lengths = torch.from_numpy(file.lengths(rows))
        self._table = _Table(*_loaded(file, rows, device), lengths.cumsum(0) - lengths, lengths, file.uniform)

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed, on the device."""
        return self._table(self._position[items])

    def ahead(self, items: Tensor) -> None:
        """Nothing: they are here."""


def _mapped(file: FeatureFile) -> _Table | None:
    """The whole file as a table over its mapped bytes; None where there is no room for the addresses."""
    try:
        arrays = {name: file.array(name) for name in ("features", "scales") if name in file.extents}
    except OSError:  # a limit on the address space (ulimit -v): then items are read one by one
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only arrays: a table is never written to
        tables = {name: torch.from_numpy(array) for name, array in arrays.items()}
    starts = torch.from_numpy(file.offsets[:-1])
    lengths = torch.from_numpy(np.diff(file.offsets))
    return _Table(tables["features"], tables.get("scales"), starts, lengths, file.uniform)


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


def _advise(descriptor: int, start: int, size: int) -> None:
    if size and hasattr(os, "posix_fadvise"):  # not on macOS; 0 would mean the rest of the file
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
