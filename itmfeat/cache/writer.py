"""Writing a feature file: created whole, filled range by range in any order, sealed last.

All sizes are known before the first forward pass, so the file gets its final layout at once as
`NAME.h5.part` (sparse: nothing is filled). Ranges of items are then written in place as raw bytes and
logged in `NAME.h5.journal`. `finish` verifies, seals and renames. A kill at any moment loses at most the
ranges in flight, and the finished file has the same bytes however often it was interrupted.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import ranges, schema, seal
from itmfeat.cache.journal import Entries, Journal, Sums, difference, journal_of
from itmfeat.errors import DataError, ItmfeatError, UsageError


@dataclass(frozen=True)
class FeatureSpec:
    """All that determines the bytes of a feature file before the first forward pass."""

    kind: str  # "image" or "text"
    backbone: str
    dataset: str  # digest of the dataset's index
    lengths: NDArray[np.int64]  # (items,) vectors of each item
    dim: int
    dtype: str = "float16"
    pooled_dim: int = 0
    boxed: bool = False  # detector regions carry boxes and scores
    labelled: bool = False  # and the number of a class
    tokens: str = "all"
    range_items: int = 128
    fingerprint: str = "{}"  # JSON: weights digest, preprocessing, licence, ...
    versions: str = "{}"  # JSON: library versions
    # mean (D',) and components (D, D') of the PCA that made the vectors, if one did; part of the skeleton
    projection: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in schema.DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}: known are {', '.join(schema.DTYPES)}")

    def payloads(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each payload."""
        items, vectors = len(self.lengths), int(self.lengths.sum())
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "features": ((vectors, self.dim), schema.DTYPES[self.dtype])
        }
        if self.dtype == "int8":
            shapes["scales"] = ((vectors,), np.float32)
        if self.pooled_dim:
            shapes["pooled"] = ((items, self.pooled_dim), np.float32)
        if self.boxed:
            shapes |= {"boxes": ((vectors, 4), np.float32), "scores": ((vectors,), np.float32)}
        if self.labelled:
            shapes["labels"] = ((vectors,), np.int32)
        return shapes

    def attributes(self) -> dict[str, str | int]:
        """What the file says of itself."""
        return {
            "schema": schema.LABELLED if self.labelled else schema.SCHEMA,
            "kind": self.kind,
            "backbone": self.backbone,
            "dataset": self.dataset,
            "dtype": self.dtype,
            "tokens": self.tokens,
            "range_items": self.range_items,
            "fingerprint": self.fingerprint,
            "versions": self.versions,
            "complete": 0,
        }

    @property
    def nbytes(self) -> int:
        """Size of the payloads in bytes."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            for shape, dtype in self.payloads().values()
        )

    @property
    def ranges(self) -> int:
        """Number of ranges."""
        return -(-len(self.lengths) // self.range_items)

    def items(self, index: int) -> range:
        """The items of a range."""
        first = index * self.range_items
        return range(first, min(first + self.range_items, len(self.lengths)))

    def identity(self) -> str:
        """A digest of everything above."""
        digest = hashlib.sha256(json.dumps([self.attributes(), self.dim, self.pooled_dim]).encode())
        for array in (self.lengths, *self.projection.values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class FeatureWriter:
    """Creates or resumes `path`; use as a context manager, write the `pending` ranges, `finish`."""

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        self.path, self.spec = path, spec
        self.part = part_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.offsets = schema.offsets_of(spec.lengths)
        self._finished = False
        self._journal = Journal(journal_of(path))
        try:
            self._done = self._start()
            self._descriptor = os.open(self.part, os.O_RDWR)
        except BaseException:
            self._journal.close()
            raise

    def _start(self) -> dict[int, dict[str, str]]:
        """Lay out a new file, or take up the one that is there; returns the ranges that are right."""
        self._fresh.unlink(missing_ok=True)  # of a kill
        entries = self._journal.read()
        if entries.identity is None or not self.part.exists():
            self._check_room(self.spec.nbytes)
            # In this order, so that whoever sees this identity and a file beside it sees the whole file.
            self.part.unlink(missing_ok=True)
            self._journal.begin(self.spec.identity(), self.spec.attributes())
            self._create(self._fresh)
            os.replace(self._fresh, self.part)  # a kill before is one before the first range
            entries = Entries()
        elif entries.identity != self.spec.identity():
            raise DataError(
                f"{self.part} is unfinished and {difference(entries.attributes, self.spec.attributes())}"
            )
        else:
            self._renew_skeleton()
        self._extents, self._sums, self._seal = layout(self.part)
        with self.part.open("rb") as file:
            return {
                index: sums
                for index, sums in entries.done.items()
                if 0 <= index < self.spec.ranges and self._read_sums(file.fileno(), index) == sums
            }

    def _check_room(self, payloads: int) -> None:
        """HDF5 cannot be trusted on a full disk (it may crash), so it is never started on one."""
        added = sum(array.nbytes for array in self.spec.projection.values())
        skeleton = self.offsets.nbytes + added + 64 * self.spec.ranges + (4 << 20)
        needed, free = payloads + skeleton, shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise ItmfeatError(
                f"{self.path} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free on its "
                "disk; make room, or choose --dtype int8, fewer --tokens or another --cache"
            )

    def _create(self, path: Path) -> None:
        """The whole file as it is before the first range: skeleton, and holes for the payloads."""
        with schema.create_file(path) as file:
            schema.set_attributes(file, self.spec.attributes())
            schema.put(file, "offsets", self.offsets)
            for name, array in self.spec.projection.items():
                schema.put(file, f"pca_{name}", array)
            payloads = self.spec.payloads()
            table = np.zeros((self.spec.ranges, len(payloads), schema.CHECKSUM_BYTES), np.uint8)
            schema.put(file, "checksums", table)
            schema.put(file, "seal", np.zeros(schema.SEAL_BYTES, np.uint8))
            for name, (shape, dtype) in payloads.items():
                schema.allocate(file, name, shape, dtype)

    def _renew_skeleton(self) -> None:
        """Bring all but the payloads back to the start: a kill may have hit while they were sealed."""
        self._check_room(0)
        try:
            self._create(self._fresh)
            payloads, _, _ = layout(self._fresh)
            with self._fresh.open("rb") as source, self.part.open("r+b") as target:
                target.truncate(self._fresh.stat().st_size)
                for start, stop in seal.skeleton_spans(self._fresh, payloads.values()):
                    os.pwrite(target.fileno(), os.pread(source.fileno(), stop - start, start), start)
        finally:
            self._fresh.unlink(missing_ok=True)

    @property
    def _fresh(self) -> Path:
        return self.part.with_name(self.part.name + ".fresh")

    @property
    def pending(self) -> list[int]:
        """Ranges that are still to be written."""
        return [index for index in range(self.spec.ranges) if index not in self._done]

    def items(self, index: int) -> range:
        """The items of a range."""
        return self.spec.items(index)

    def refresh(self) -> None:
        """Take in the ranges that others have logged since: `Contributor`s of the same extraction."""
        found = self._journal.read().done
        self._done |= {index: sums for index, sums in found.items() if 0 <= index < self.spec.ranges}

    def slot(self, index: int) -> ranges.Slot:
        """Where the bytes of a range belong; what it takes to write it in another process."""
        return slot_of(self.path, self.spec, self.offsets, self._extents, index)

    def log(self, index: int, sums: Sums) -> None:
        """Note that all bytes of a range are written, and their checksums."""
        self._journal.finish_range(index, sums)
        self._done[index] = sums

    def write(self, index: int, **payloads: ranges.Values) -> None:
        """Write all items of a range, as `itmfeat.cache.ranges.fill`, and log them.

        Any number of ranges may be written at once.
        """
        self.log(index, ranges.fill(self.slot(index), **payloads))

    def _read_sums(self, descriptor: int, index: int) -> dict[str, str]:
        return {
            name: seal.checksum_at(descriptor, start, stop).hex()
            for name, (start, stop, _) in self.slot(index).places.items()
        }

    def finish(self) -> Path:
        """Verify every range, seal, rename; the file is complete when this returns."""
        if self.pending:
            raise ValueError(f"{len(self.pending)} ranges are not written")
        with self.part.open("rb") as file:  # opened now, to see what other machines wrote
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                read = list(pool.map(partial(self._read_sums, file.fileno()), self._done))
            for found, sums in zip(read, self._done.values(), strict=True):
                if found != sums:
                    raise ItmfeatError(f"{self.part} changed under the writer; repeat the command")
        table = "".join(
            self._done[index][name] for index in range(self.spec.ranges) for name in self._extents
        )
        ranges.write_at(self._descriptor, memoryview(bytes.fromhex(table)), self._sums.offset, self.path)
        os.fsync(self._descriptor)
        with h5py.File(self.part, "r+", locking=False) as file:
            file.attrs.modify("complete", np.int64(1))
        seal.write_seal(self.part, self._extents.values(), self._seal)
        os.replace(self.part, self.path)
        self._finished = True
        self._journal.remove()
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        if not self._finished:  # the journal stays for the next start
            self._journal.close()


def layout(path: Path) -> tuple[dict[str, schema.Extent], schema.Extent, schema.Extent]:
    """Extents of the payloads, in the order of the checksum table, of that table and of the seal.

    A DataError if the file has another schema, if its datasets do not fit together, or its `offsets` them.
    """
    with schema.open_file(path) as file:
        schema.check_version(file, path, (schema.SCHEMA, schema.LABELLED))
        found = {name: schema.extent(file, name, path) for name in schema.PAYLOADS}
        payloads = {name: value for name, value in found.items() if value is not None}
        sums, sealed = schema.extent(file, "checksums", path), schema.extent(file, "seal", path)
        if found["features"] is None or sums is None or sealed is None:
            raise DataError(f"{path} is no feature file of itmfeat")
        schema.check_fit(file, path, payloads, sums, sealed)
    return payloads, sums, sealed


def slot_of(
    path: Path, spec: FeatureSpec, offsets: NDArray[np.int64], extents: dict[str, schema.Extent], index: int
) -> ranges.Slot:
    """Where the bytes of a range belong in the unfinished file of `path`."""
    items = spec.items(index)
    vectors = int(offsets[items.start]), int(offsets[items.stop])
    slices = seal.payload_slices(extents, items.start, items.stop, vectors)
    places = {name: (*bounds, str(extents[name].dtype)) for name, bounds in slices.items()}
    return ranges.Slot(path, part_of(path), spec.backbone, index, items, spec.dtype, places)


def part_of(path: Path) -> Path:
    """What a feature file is called while it is unfinished."""
    return path.with_name(path.name + ".part")
