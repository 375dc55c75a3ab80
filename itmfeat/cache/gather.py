"""Fetching shuffled items of a feature file: from the disk, or from a copy in memory.

A file that fits into free memory is mapped (read-only: the kernel refuses a writable mapping, even a private
one, that is larger than all memory). Once its pages are cached a gather runs at the speed of memory. Of a
larger file items are read one by one: a page that is missing in a mapping lets the kernel read megabytes
around it, and those push out what was read ahead.
"""

import math
import mmap
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat.cache.ranges import TORCH_DTYPES
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.schema import Extent
from itmfeat.errors import DataError
from itmfeat.machine import free_memory

_POPULATE = 22  # MADV_POPULATE_READ of Linux
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

    def places(self, extent: Extent) -> Iterator[tuple[int, int]]:
        """Position and size in bytes of each span."""
        starts = extent.offset + self.first * extent.row_bytes
        sizes = (self.last - self.first) * extent.row_bytes
        return zip(starts.tolist(), sizes.tolist(), strict=True)


@dataclass(frozen=True)
class _Table:
    """Vectors (V, D) of items one after another, where each item begins, and how long it is (n,)."""

    vectors: Tensor
    scales: Tensor | None  # (V,)
    starts: Tensor
    lengths: Tensor
    regions: int  # vectors of every item that is not empty; 0 if they differ

    @staticmethod
    def of(vectors: Tensor, scales: Tensor | None, lengths: Tensor) -> "_Table":
        """The table of items with so many vectors (n,)."""
        kept = lengths[lengths > 0]
        regions = int(kept[0]) if len(kept) and bool((kept == kept[0]).all()) else 0
        return _Table(vectors, scales, lengths.cumsum(0) - lengths, lengths, regions)

    def __call__(self, places: Tensor) -> Ragged:
        """The items at these places (B,), padded to the longest, on the device of the table."""
        device, dim, scales = self.vectors.device, self.vectors.shape[1], self.scales
        lengths = self.lengths[places]
        if self.regions and bool((lengths == self.regions).all()):  # one row an item: one long copy
            shape = (len(places), self.regions)
            places = (self.starts[places] // self.regions).to(device)
            vectors = self.vectors.view(-1, self.regions * dim).index_select(0, places)
            if scales is not None:
                scales = scales.view(-1, self.regions).index_select(0, places)
            return Ragged(vectors.view(*shape, dim), lengths, scales)
        steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
        inside = steps < lengths.unsqueeze(1)  # (B, L)
        rows = torch.where(inside, self.starts[places].unsqueeze(1) + steps, 0).flatten().to(device)
        vectors = self.vectors.index_select(0, rows).view(*inside.shape, dim)
        vectors.masked_fill_(~inside.to(device).unsqueeze(-1), 0)
        if scales is not None:
            scales = scales.index_select(0, rows).view(inside.shape)
        return Ragged(vectors, lengths, scales)

    def whole(self) -> Ragged:
        """All items in order; without a copy where none needs padding."""
        shape = (len(self.lengths), self.regions)
        if not self.regions or len(self.vectors) != shape[0] * shape[1]:
            return self(torch.arange(len(self.lengths)))
        scales = None if self.scales is None else self.scales.view(shape)
        return Ragged(self.vectors.view(*shape, self.vectors.shape[1]), self.lengths, scales)


@dataclass(frozen=True)
class _Mapping:
    """A whole file as a table over its mapped bytes."""

    pages: mmap.mmap
    table: _Table
    touched: NDArray[np.bool_]  # (R,) ranges whose pages were brought in

    @staticmethod
    def of(file: FeatureFile) -> "_Mapping | None":
        """The mapping of a file; None where a limit on the address space (ulimit -v) forbids it."""
        try:
            pages = mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ)
        except OSError:
            return None
        pages.madvise(mmap.MADV_RANDOM)  # what to read in advance, `Gather.ahead` says
        tables = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only arrays: a table is never written to
            for name in _names(file):
                extent = file.extents[name]
                count = math.prod(extent.shape)
                values = np.frombuffer(pages, extent.dtype, count, extent.offset if count else 0)
                tables[name] = torch.from_numpy(values.reshape(extent.shape))
        lengths = torch.from_numpy(np.diff(file.offsets))
        table = _Table.of(tables["features"], tables.get("scales"), lengths)
        return _Mapping(pages, table, np.zeros(file.ranges, bool))

    def touch(self, file: FeatureFile, rows: NDArray[np.int64]) -> None:
        """Bring in all pages of the ranges of items at the first time: one by one takes longer."""
        if self.touched.all():
            return
        step, extent = file.range_items, file.extents["features"]
        ranges = np.unique(rows // step)
        for index in ranges[~self.touched[ranges]].tolist():
            first, last = file.offsets[[index * step, min((index + 1) * step, len(file))]].tolist()
            start = extent.row(first) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                with suppress(OSError):  # a kernel before 5.14
                    self.pages.madvise(_POPULATE, start, extent.row(last) - start)
        self.touched[ranges] = True


class Gather:
    """Fetches items of a feature file from the disk or the page cache; nothing stays in memory.

    Ranges are compared with their checksums when one of their items is fetched for the first time
    (`FeatureFile.check`). `ahead` asks the kernel to read items that will be fetched soon, many at once.
    `mapped` None decides by the size of the file and what memory is free.
    """

    def __init__(self, file: FeatureFile, *, checked: bool = True, mapped: bool | None = None) -> None:
        self.file, self._checked = file, checked
        if mapped is None:
            mapped = file.extents["features"].nbytes < free_memory()
        self._mapping = _Mapping.of(file) if mapped else None

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed."""
        rows, extent = items.numpy(), self.file.extents["features"]
        if os.fstat(self.file.descriptor).st_size < extent.offset + extent.nbytes:
            raise DataError(f"{self.file.path} became shorter while it was read; copy it again")
        if self._checked:
            self.file.check(rows, _names(self.file))
        if self._mapping is None:
            return _Table.of(*_read(self.file, rows), torch.from_numpy(self.file.lengths(rows))).whole()
        self._mapping.touch(self.file, rows)
        return self._mapping.table(items)

    def ahead(self, items: Tensor) -> None:
        """These items (B,) will be fetched soon: let the kernel start to read them, all at once."""
        spans = _Spans.of(self.file, items.numpy())
        for name in _names(self.file):
            for start, size in spans.places(self.file.extents[name]):
                _advise(self.file.descriptor, start, size)


class Resident:
    """Items of a feature file in memory, on the host or on a device, in the dtype of the file."""

    def __init__(self, file: FeatureFile, rows: NDArray[np.int64], device: torch.device) -> None:
        self._position = torch.full((len(file),), -1)
        self._position[torch.from_numpy(rows)] = torch.arange(len(rows))
        self._table = _Table.of(*_loaded(file, rows, device), torch.from_numpy(file.lengths(rows)))

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed, on the device."""
        return self._table(self._position[items])

    def ahead(self, items: Tensor) -> None:
        """Nothing: they are here."""


def _names(file: FeatureFile) -> list[str]:
    """The payloads that make up its vectors."""
    return [name for name in ("features", "scales") if name in file.extents]


def _read(file: FeatureFile, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
    """Vectors (V, D) of items, one after another, and their scales (V,) in a file of int8."""
    spans, found = _Spans.of(file, rows), {}
    for name in _names(file):
        extent = file.extents[name]
        shape = (int((spans.last - spans.first).sum()), *extent.shape[1:])
        found[name] = torch.empty(shape, dtype=TORCH_DTYPES[str(extent.dtype)])
        target = memoryview(found[name].view(-1).view(torch.uint8).numpy().data)
        for start, size in spans.places(extent):
            _fill(target[:size], file, start)
            target = target[size:]
    return found["features"], found.get("scales")


def _fill(target: memoryview, file: FeatureFile, position: int) -> None:
    """Read bytes at a position of the file."""
    while target:
        count = os.preadv(file.descriptor, [target], position)
        if not count:
            raise DataError(f"{file.path} became shorter while it was read; copy it again")
        target, position = target[count:], position + count


def _loaded(file: FeatureFile, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Vectors (V, D) and scales (V,) of the rows, one after another, on the device."""
    extent, count = file.extents["features"], int(file.lengths(rows).sum())
    vectors = torch.empty((count, file.dim), dtype=TORCH_DTYPES[str(extent.dtype)], device=device)
    scales = torch.empty(count, device=device) if "scales" in file.extents else None
    first = 0
    for part in np.array_split(rows, max(1, count * extent.row_bytes // _LOAD_BYTES)):
        file.check(part, _names(file))
        values, factors = _read(file, part)
        last = first + len(values)
        vectors[first:last] = values
        if scales is not None and factors is not None:
            scales[first:last] = factors
        first = last
    return vectors, scales


def _advise(descriptor: int, start: int, size: int) -> None:
    if size and hasattr(os, "posix_fadvise"):  # not on macOS; 0 would mean the rest of the file
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
