"""Names, dtypes and the HDF5 side of the format: one place that knows how a cache file is laid out.

A *payload* is a dataset whose bytes are covered by the checksums of ranges of items: `features`,
`scales`, `pooled`, `boxes`, `scores`, `labels`. All else in the file is its *skeleton*, covered by `seal`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from itmfeat.errors import DataError

SCHEMA, LABELLED = 1, 2
"""Versions of the format, without and with `labels`: a reader of the first would misread the second."""

DTYPES = {"float16": np.float16, "float32": np.float32, "int8": np.int8}
PAYLOADS = ("features", "scales", "pooled", "boxes", "scores", "labels")
CHECKSUM_BYTES = 16  # of the SHA-256 of each payload of each range
SEAL_BYTES = 32  # SHA-256 of the skeleton
PAGE = 4096  # payloads start on a page, so that they can be mapped, advised and read directly


@dataclass(frozen=True)
class Extent:
    """Where the raw bytes of a contiguous dataset lie in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole dataset."""
        return math.prod(self.shape) * self.dtype.itemsize  # of any size: a claimed shape may be absurd

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def row(self, index: int) -> int:
        """Byte position of a row in the file."""
        return self.offset + index * self.row_bytes


def create_file(path: Path | BinaryIO) -> h5py.File:
    """A new HDF5 file in which every dataset starts on a page. The same calls give the same bytes."""
    return h5py.File(path, "w", libver=("v108", "v108"), alignment_threshold=1, alignment_interval=PAGE)


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Give a dataset its place in the file without writing it: contiguous, early, never filled."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, dcpl=plist).close()


def put(file: h5py.File, name: str, value: NDArray[Any]) -> None:
    """Store an array of the skeleton."""
    value = np.ascontiguousarray(value)
    allocate(file, name, value.shape, value.dtype)
    if value.size:
        file[name][...] = value


def put_strings(file: h5py.File, name: str, values: list[str]) -> None:
    """Store strings as one array of UTF-8 bytes and the offsets of each (`NAME_offsets`)."""
    encoded = [value.encode() for value in values]
    put(file, name, np.frombuffer(b"".join(encoded), dtype=np.uint8))
    put(file, f"{name}_offsets", offsets_of([len(value) for value in encoded]))


def offsets_of(lengths: "list[int] | NDArray[np.int64]") -> NDArray[np.int64]:
    """Start of each item and the end of the last, from lengths: shape (items + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def set_attributes(file: h5py.File, attributes: Mapping[str, str | int]) -> None:
    """Attributes as fixed-length text or int64: no pointers into a heap, so nothing moves later."""
    for name, value in attributes.items():
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)


def attributes(file: h5py.File) -> dict[str, str | int]:
    """All attributes of the file, as text and integers; a TypeError for what we do not write."""
    found: dict[str, str | int] = {}
    # Read first, converted after: the iterator of h5py holds a lock on all of HDF5, and an error in the
    # middle would keep it, so that another thread waits for ever.
    for name, value in dict(file.attrs.items()).items():
        if not isinstance(value, bytes | np.integer):
            raise TypeError(f"{name} is neither text nor an integer")
        found[name] = value.decode() if isinstance(value, bytes) else int(value)
    return found


def check_version(file: h5py.File, path: Path, known: tuple[int, ...] = (SCHEMA,)) -> None:
    """A DataError if the file says that it has another schema: then nothing else in it can be judged."""
    found = file.attrs.get("schema")
    if isinstance(found, np.integer) and found not in known:
        raise DataError(
            f"{path} has schema {found}, this version reads {' and '.join(map(str, known))}; "
            "extract it again or use the version that wrote it"
        )


def damaged(path: Path, fault: str = "") -> DataError:
    """What to say of a file that is not as it was written."""
    fault = fault and f" ({fault})"
    return DataError(
        f"{path} is damaged or no file of itmfeat{fault}; delete it and extract again, or copy it again"
    )


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open for reading, without a lock (network file systems).

    Whatever HDF5 cannot make sense of, at opening or inside the block, is a DataError.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise damaged(path) from error


def inside(file: h5py.File, name: str, path: Path) -> h5py.Dataset | None:
    """A dataset of this very file, no link to elsewhere; None if it is not there."""
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise DataError(f"{path}: {name} is no plain dataset; this file was not written by itmfeat")
    return file[name]


def extent(file: h5py.File, name: str, path: Path) -> Extent | None:
    """Where a dataset's bytes lie, or None if it is not there.

    Only plain datasets inside this very file are accepted (no links to elsewhere, no external storage,
    no filters), so that a file from a stranger can make nothing else be opened, loaded or run.
    """
    dataset = inside(file, name, path)
    if dataset is None:
        return None
    plist = dataset.id.get_create_plist()
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_external_count()
    if not plain or dataset.dtype.hasobject:
        raise DataError(f"{path}: {name} is not stored contiguously; this file cannot be mapped")
    found = Extent(dataset.id.get_offset() or 0, dataset.shape, dataset.dtype)
    if found.offset + found.nbytes > path.stat().st_size:
        raise DataError(f"{path} is truncated: {name} ends beyond the file; copy it again")
    return found


def array(file: h5py.File, name: str, path: Path) -> NDArray[Any]:
    """A whole dataset of the skeleton, under the conditions of `extent`."""
    found = extent(file, name, path)
    if found is None:
        raise DataError(f"{path} has no {name}; this file was not written by itmfeat")
    return read(path, found)


def read(path: Path, found: Extent) -> NDArray[Any]:
    """Read a whole dataset into memory by its extent."""
    data = np.fromfile(path, dtype=found.dtype, count=math.prod(found.shape), offset=found.offset)
    return data.reshape(found.shape)


def projection(path: Path) -> dict[str, NDArray[np.float32]]:
    """Mean (D,) and components (d, D) of the PCA that made the vectors of a file; empty if none did."""
    with open_file(path) as file:
        return {
            name: array(file, f"pca_{name}", path) for name in ("mean", "components") if f"pca_{name}" in file
        }


def check_fit(
    file: h5py.File, path: Path, payloads: Mapping[str, Extent], sums: Extent, sealed: Extent
) -> None:
    """A DataError if shapes, types, places or `offsets` of a feature file contradict each other."""
    found, offsets, features = attributes(file), array(file, "offsets", path), payloads["features"]
    items, vectors = len(offsets) - 1, features.shape[0] if features.shape else 0
    for name in ("range_items", "dtype", "fingerprint"):
        if name not in found:
            raise damaged(path, f"it has no {name}")
    step = int(found["range_items"])
    fits = {
        "offsets": offsets.dtype == np.int64 and offsets.ndim == 1 and rises(offsets, vectors),
        "range_items": step > 0,
        "checksums": sums.dtype == np.uint8
        and sums.shape == (-(-items // max(step, 1)), len(payloads), CHECKSUM_BYTES),
        "seal": sealed.dtype == np.uint8 and sealed.shape == (SEAL_BYTES,),
        "dtype": features.dtype == DTYPES.get(str(found["dtype"])),
        "payloads": ("scales" in payloads) == (features.dtype == np.int8),
        "fingerprint": isinstance(json.loads(str(found["fingerprint"])), dict),
    }
    for name, extent in payloads.items():
        rows = items if name == "pooled" else vectors
        dims = 1 if name in ("scales", "scores", "labels") else 2
        fits[name] = extent.shape[:1] == (rows,) and len(extent.shape) == dims
        fits[name] &= name == "features" or extent.dtype == (np.int32 if name == "labels" else np.float32)
        fits[name] &= name != "boxes" or extent.shape[1] == 4
    if "labels" in payloads:
        fits["labels"] &= found.get("schema") == LABELLED
    spans = sorted((extent.offset, extent.nbytes) for extent in payloads.values() if extent.nbytes)
    fits["places"] = all(start + size <= after for (start, size), (after, _) in pairwise(spans))
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise damaged(path, f"its {wrong[0]} do not fit the rest")


def rises(offsets: NDArray[np.int64], end: int) -> bool:
    """Whether offsets begin with 0, never decrease, and end where the data do."""
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == end
    return bool(ends and (offsets[1:] >= offsets[:-1]).all())


class Strings:
    """Strings of a cache file, decoded one by one when asked for: half a million open at once."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._data, self._offsets = data, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bytes(self._data[self._offsets[index] : self._offsets[index + 1]]).decode()

    def tolist(self) -> list[str]:
        """All of them."""
        return [self[index] for index in range(len(self))]

    def columns(self, name: str) -> dict[str, NDArray[Any]]:
        """The two datasets that hold them."""
        return {name: self._data, f"{name}_offsets": self._offsets}
