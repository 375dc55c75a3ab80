"""Opening a feature file, and comparing its bytes with their checksums."""

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import schema, seal
from itmfeat.cache.journal import clear_finished, mismatch
from itmfeat.cache.writer import FeatureSpec, layout
from itmfeat.errors import DataError

REQUIRED = {"schema", "kind", "dataset", "dtype", "tokens", "range_items", "fingerprint"}
"""Attributes without which a file says nothing."""


class FeatureFile:
    """A sealed feature file. Opening checks the seal, the schema and, if given, the dataset's digest."""

    def __init__(self, path: Path, dataset: str | None = None) -> None:
        self.path = path
        if not path.exists():
            part = path.with_name(path.name + ".part").exists()
            state = "is not finished: repeat the extraction, it resumes" if part else "does not exist"
            raise DataError(f"{path} {state}")
        self.extents, self._sums, self._seal = layout(path)
        self.digest = seal.check_seal(path, self.extents.values(), self._seal)
        with schema.open_file(path) as file:
            self.attributes = schema.attributes(file)
            self.offsets: NDArray[np.int64] = schema.array(file, "offsets", path)
        self._check(dataset)
        lengths = np.diff(self.offsets)
        self.uniform = int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else 0
        self._table = schema.read(path, self._sums)  # (R, P, 16)
        self._right = np.zeros(self._table.shape[:2], bool)  # ranges and payloads that were compared
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def _check(self, dataset: str | None) -> None:
        if self.attributes.get("complete") != 1:
            raise DataError(f"{self.path} is not complete; repeat the extraction, it resumes")
        if missing := REQUIRED - self.attributes.keys():
            raise DataError(f"{self.path} has no {min(missing)}; this file was not written by itmfeat")
        if dataset is not None and self.attributes["dataset"] != dataset:
            raise DataError(f"{self.path} belongs to another dataset than dataset.h5 beside it")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def ranges(self) -> int:
        """R, the number of ranges of items that are checked together."""
        return len(self._table)

    @property
    def range_items(self) -> int:
        """Items of a range."""
        return int(self.attributes["range_items"])

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.extents["features"].shape[1]

    @property
    def empty(self) -> NDArray[np.int64]:
        """Rows of the items without a vector, ascending: images that could not be read."""
        return np.flatnonzero(self.offsets[1:] == self.offsets[:-1]).astype(np.int64)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What is known of the backbone: weights digest, preprocessing, licence."""
        return dict(json.loads(str(self.attributes["fingerprint"])))

    @property
    def has_means(self) -> bool:
        """Whether `pooled` holds the mean of each item's vectors."""
        whole = self.attributes["tokens"] == "all" and "pooled" in self.extents
        return whole and self.fingerprint.get("pooled") == "mean"

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of vectors of items, (B,)."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def array(self, name: str = "features") -> NDArray[Any]:
        """A payload as a read-only array over the mapped file; `check` first what you take of it."""
        extent = self.extents[name]
        if not extent.nbytes:
            return np.empty(extent.shape, extent.dtype)
        return np.memmap(self.path, extent.dtype, "r", offset=extent.offset, shape=extent.shape)

    def check(self, rows: NDArray[np.int64] | None = None, names: Sequence[str] | None = None) -> None:
        """Compare the ranges of items (all) with their checksums in payloads (all), each range once.

        A DataError names the items of the first damaged range. What is copied to another file has to be
        checked: there it would get a right checksum.
        """
        columns = [list(self.extents).index(name) for name in names or self.extents]
        right: NDArray[np.bool_] = np.all(self._right[:, columns], axis=1)  # (R,)
        if right.all():
            return
        ranges = np.arange(len(right)) if rows is None else rows // self.range_items
        fresh = ranges[~right[ranges]]
        for items in self._damaged(np.unique(fresh), columns):
            raise DataError(damage(self.path, items))
        self._right[fresh[:, None], columns] = True

    def verify(self) -> list[range]:
        """Compare every payload byte with its checksums; returns the damaged ranges of items."""
        return list(self._damaged(np.arange(len(self._right)), list(range(len(self.extents)))))

    def _damaged(
        self,
        ranges: NDArray[np.int64],
        columns: list[int],
        workers: int = 2,
    ) -> Iterator[range]:
        """The items of those ranges that do not fit their checksums in the given payloads."""
        step = self.range_items
        names = [list(self.extents)[column] for column in columns]

        def matches(index: int) -> bool:
            first, last = index * step, min((index + 1) * step, len(self))
            vectors = int(self.offsets[first]), int(self.offsets[last])
            places = seal.payload_slices(self.extents, first, last, vectors)
            return all(
                seal.checksum_at(self.descriptor, *places[name]) == self._table[index, column].tobytes()
                for name, column in zip(names, columns, strict=True)
            )

        with ThreadPoolExecutor(workers) as pool:
            for index, right in zip(ranges.tolist(), pool.map(matches, ranges.tolist()), strict=True):
                if not right:
                    yield range(index * step, min((index + 1) * step, len(self)))


def damage(path: Path, items: range) -> str:
    """What to say of a range that does not fit its checksum."""
    return f"{path}: items {items.start} to {items.stop - 1} are damaged; delete it and extract again"


def holds(path: Path, spec: FeatureSpec) -> bool:
    """Whether a finished file is there and holds what was asked; a DataError if it holds something else.

    Other library versions do not count: a finished file is not made again for those.
    """
    if not path.exists():
        return False
    found, wanted = FeatureFile(path, spec.dataset), spec.attributes()
    for key in ("kind", "backbone", "dtype", "tokens", "fingerprint"):
        if found.attributes.get(key) != wanted[key]:
            raise DataError(
                f"{path} holds features with {mismatch(key, found.attributes, wanted)}; "
                "choose another folder or name, or delete it"
            )
    clear_finished(path)
    return True
