"""Reading a feature file: mapped raw bytes, gathered at the speed of memory."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat.cache import schema, seal
from itmfeat.cache.writer import FeatureSpec, layout
from itmfeat.errors import DataError

REQUIRED = {"kind", "dataset", "dtype", "tokens", "range_items", "fingerprint"}
"""Attributes without which a file says nothing."""


@dataclass(frozen=True)
class Ragged:
    """Vectors of a batch of items, padded to the longest."""

    vectors: Tensor  # (B, L, D), zeros behind each item's length
    lengths: Tensor  # (B,)


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

    def _check(self, dataset: str | None) -> None:
        if self.attributes.get("schema") != schema.SCHEMA:
            raise DataError(
                f"{self.path} has schema {self.attributes.get('schema')}, this version reads "
                f"{schema.SCHEMA}; extract it again or use the version that wrote it"
            )
        if self.attributes.get("complete") != 1:
            raise DataError(f"{self.path} is not complete; repeat the extraction, it resumes")
        if missing := REQUIRED - self.attributes.keys():
            raise DataError(f"{self.path} has no {min(missing)}; this file was not written by itmfeat")
        if dataset is not None and self.attributes["dataset"] != dataset:
            raise DataError(f"{self.path} belongs to another dataset than dataset.h5 beside it")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.extents["features"].shape[1]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What is known of the backbone: weights digest, preprocessing, licence."""
        return dict(json.loads(str(self.attributes["fingerprint"])))

    @property
    def has_means(self) -> bool:
        """Whether `pooled` holds the mean of each item's vectors."""
        whole = self.attributes["tokens"] == "all" and "pooled" in self.extents
        return whole and self.fingerprint.get("pooled") == "mean"

    def tensor(self, name: str = "features") -> Tensor:
        """A payload as a tensor over the mapped file; writing to it does not reach the file."""
        extent = self.extents[name]
        raw = np.memmap(self.path, extent.dtype, "c", offset=extent.offset, shape=extent.shape)
        return torch.from_numpy(raw)

    def verify(self, workers: int = 2) -> list[range]:
        """Compare every payload byte with its checksums; returns the damaged ranges of items."""
        stored = schema.read(self.path, self._sums)
        step = int(self.attributes["range_items"])
        descriptor = os.open(self.path, os.O_RDONLY)

        def damaged(index: int) -> range | None:
            first, last = index * step, min((index + 1) * step, len(self))
            vectors = int(self.offsets[first]), int(self.offsets[last])
            places = seal.payload_slices(self.extents, first, last, vectors).values()
            for column, (start, stop) in enumerate(places):
                if seal.checksum_at(descriptor, start, stop) != stored[index, column].tobytes():
                    return range(first, last)
            return None

        try:
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(damaged, range(len(stored))))
        finally:
            os.close(descriptor)
        return [items for items in found if items is not None]


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
                f"{path} holds features with another {key}; choose another folder or name, or delete it"
            )
    return True


class Gather:
    """Fetches shuffled items of a feature file. The tensors stay mapped; nothing goes through h5py."""

    def __init__(self, file: FeatureFile) -> None:
        self._features = file.tensor()
        self._scales = file.tensor("scales") if "scales" in file.extents else None
        self._offsets = torch.from_numpy(file.offsets)
        self._regions = file.uniform
        if self._regions:  # one row an item: one long copy instead of many short ones
            self._features = self._features.view(len(file), -1)
            if self._scales is not None:
                self._scales = self._scales.view(len(file), -1)
        self.dim = file.dim

    def __call__(self, items: Tensor) -> Ragged:
        """Vectors of the items (B,), repeats allowed, in the dtype of the file (float32 for int8)."""
        if self._regions:
            shape = (len(items), self._regions, self.dim)
            vectors = self._features.index_select(0, items).view(shape)
            scales = None if self._scales is None else self._scales.index_select(0, items)
            lengths = torch.full((len(items),), self._regions)
        else:
            vectors, scales, lengths = self._ragged(items)
        if scales is not None:
            vectors = vectors.float().mul_(scales.unsqueeze(-1))
        return Ragged(vectors, lengths)

    def _ragged(self, items: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Padded vectors (B, L, D), scales (B, L) for int8 and lengths (B,)."""
        starts = self._offsets[items]
        lengths = self._offsets[items + 1] - starts
        steps = torch.arange(int(lengths.max()) if len(items) else 0)
        inside = steps < lengths.unsqueeze(1)  # (B, L)
        rows = torch.where(inside, starts.unsqueeze(1) + steps, 0).flatten()
        vectors = self._features.index_select(0, rows).view(*inside.shape, self.dim)
        vectors.masked_fill_(~inside.unsqueeze(-1), 0)
        if self._scales is None:
            return vectors, None, lengths
        return vectors, self._scales.index_select(0, rows).view(inside.shape), lengths
