"""`dataset.h5`: image ids and files, captions, which image each caption belongs to, splits."""

import codecs
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import schema, seal
from itmfeat.errors import DataError, ItmfeatError, disk_full, reason_of
from itmfeat.locks import lock_file

SPLITS = ("train", "val", "test")
_COLUMNS = {"image_split": np.uint8, "caption_id": np.int64, "caption_image": np.int64}
_STRINGS = ("image_id", "image_file", "caption")
_STEP = 1 << 20


@dataclass(frozen=True)
class DatasetIndex:
    """The index of a cache. Captions of an image stand together, in image order."""

    name: str
    digest: str  # SHA-256 over the contents; feature files carry it
    image_id: schema.Strings
    image_file: schema.Strings
    image_split: NDArray[np.uint8]  # (images,) position in SPLITS
    caption: schema.Strings
    caption_id: NDArray[np.int64]  # (captions,)
    caption_image: NDArray[np.int64]  # (captions,) row of the image

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.image_split)

    @property
    def captions(self) -> int:
        """Number of captions."""
        return len(self.caption_image)

    def split_sizes(self) -> dict[str, tuple[int, int]]:
        """Images and captions of each split."""
        caption_split = self.image_split[self.caption_image]
        return {
            split: (int((self.image_split == code).sum()), int((caption_split == code).sum()))
            for code, split in enumerate(SPLITS)
        }

    def recomputed_digest(self) -> str:
        """What `digest` must be by the contents."""
        columns = {key: getattr(self, key) for key in _COLUMNS}
        for key in _STRINGS:
            columns |= getattr(self, key).columns(key)
        return content_digest(columns, self.name)


def content_digest(arrays: dict[str, NDArray[np.generic]], name: str) -> str:
    """SHA-256 over the contents, whatever version of HDF5 stores them."""
    digest = hashlib.sha256(name.encode())
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        digest.update(f"\0{key}\0{value.dtype.str}\0{value.shape}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _fault(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What contradicts itself in the columns of an index; an empty text if nothing does."""
    wanted = _COLUMNS | {key: np.uint8 for key in _STRINGS} | {f"{key}_offsets": np.int64 for key in _STRINGS}
    for key, dtype in wanted.items():
        if arrays[key].dtype != dtype or arrays[key].ndim != 1:
            return f"{key} is {arrays[key].dtype} with {arrays[key].ndim} dimensions"
    for key in _STRINGS:
        if not _are_texts(arrays[key], arrays[f"{key}_offsets"]):
            return f"{key} does not fit its offsets"
    split, image, number = (arrays[key] for key in ("image_split", "caption_image", "caption_id"))
    images, captions, ordered = len(split), len(image), np.sort(number)  # np.unique takes a second
    counts = {"image_id": images, "image_file": images, "caption": captions}
    fits = {
        "image_id, image_file, image_split, caption, caption_id and caption_image differ in length": (
            all(len(arrays[f"{key}_offsets"]) == count + 1 for key, count in counts.items())
            and len(number) == captions
        ),
        f"a code of image_split is above {len(SPLITS) - 1}": (split < len(SPLITS)).all(),
        "caption_image points beyond the images": ((image >= 0) & (image < images)).all(),
        "caption_image is not in the order of the images": (image[1:] >= image[:-1]).all(),
        "a caption_id stands twice": (ordered[1:] > ordered[:-1]).all(),
        "an image_id stands twice": _differ(arrays["image_id"], arrays["image_id_offsets"]),
    }
    return next((fault for fault, fit in fits.items() if not fit), "")


def _are_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> bool:
    """Whether strings are valid UTF-8, each of them; decoded in steps, as a whole may take much memory."""
    if not schema.rises(offsets, len(data)):
        return False
    starts = offsets[:-1]
    if len(data) and ((data.take(starts, mode="clip") & 0xC0 == 0x80) & (starts < len(data))).any():
        return False  # a string begins inside a character
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for first in range(0, len(data), _STEP):
            decoder.decode(data[first : first + _STEP].data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _differ(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> bool:
    """Whether strings are all different: surely if their hashes are, which take less memory than a set."""
    raw, count = data.tobytes(), len(offsets) - 1
    hashes = np.fromiter((hash(text) for text in _pieces(raw, offsets)), np.int64, count)
    hashes.sort()
    return bool((hashes[1:] > hashes[:-1]).all()) or len(set(_pieces(raw, offsets))) == count


def _pieces(raw: bytes, offsets: NDArray[np.int64]) -> Iterator[bytes]:
    return (raw[start:stop] for start, stop in pairwise(map(int, offsets)))


def write_index(
    path: Path,
    name: str,
    strings: dict[str, list[str]],
    columns: dict[str, NDArray[np.generic]],
) -> str:
    """Write `dataset.h5` in one piece and return its digest. `strings` and `columns` as in the class.

    An index that is already there stays untouched if it is the same, and is an error if it is not:
    feature files belong to exactly one index.
    """
    image = io.BytesIO()  # HDF5 may crash on a full disk, plain writing does not
    with schema.create_file(image) as file:
        for key in _STRINGS:
            schema.put_strings(file, key, strings[key])
        for key in _COLUMNS:
            schema.put(file, key, columns[key])
        schema.put(file, "seal", np.zeros(schema.SEAL_BYTES, np.uint8))
        arrays = {key: value[...] for key, value in file.items() if key != "seal"}
        if fault := _fault(arrays):
            raise DataError(f"{name} cannot become {path}: {fault}; correct the dataset")
        digest = content_digest(arrays, name)
        schema.set_attributes(
            file, {"schema": schema.SCHEMA, "kind": "dataset", "name": name, "digest": digest}
        )
        place = schema.Extent(file["seal"].id.get_offset(), (schema.SEAL_BYTES,), np.dtype("u1"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _place(path, image, place)
    except OSError as error:
        raise disk_full(error, path, "") or ItmfeatError(
            f"{path.parent} cannot become a cache ({reason_of(error)}): choose another folder with --cache"
        ) from error
    there = read_index(path)
    if there.digest != digest:
        other = " with other images, captions or splits" if there.name == name else f", not {name}"
        raise DataError(
            f"{path.parent} already holds {there.name}{other}; "
            "choose another folder with --cache, or delete that one"
        )
    return digest


def _place(path: Path, image: io.BytesIO, place: schema.Extent) -> None:
    """Write an index under a temporary name and rename it, unless there is one.

    The temporary file is locked: of two processes that start at once the second waits, and finds the index
    of the first. What a kill left of it is overwritten.
    """
    part = path.with_name(path.name + ".part")
    if path.exists() and not part.exists():
        return
    lock = lock_file(part, os.O_RDWR | os.O_CREAT, busy=None)
    try:
        if not path.exists():
            part.write_bytes(image.getbuffer())
            seal.write_seal(part, [], place)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


def read_index(path: Path) -> DatasetIndex:
    """Open `dataset.h5`; a DataError in one sentence if it is missing, damaged or of another schema."""
    if not path.exists():
        raise DataError(
            f"{path.parent} is no cache: "
            "it has no dataset.h5; name another with --cache, or make one with `itmfeat extract`"
        )
    with schema.open_file(path) as file:
        schema.check_version(file, path)
        found = schema.extent(file, "seal", path)
        if found is None:
            raise DataError(f"{path} is no index of itmfeat")
        if found.shape != (schema.SEAL_BYTES,) or found.dtype != np.uint8:
            raise schema.damaged(path, "its seal")
        seal.check_seal(path, [], found)
        attributes = schema.attributes(file)
        if missing := {"schema", "name", "digest"} - attributes.keys():
            raise DataError(f"{path} has no {min(missing)}; this file was not written by itmfeat")
        strings = [name for key in _STRINGS for name in (key, f"{key}_offsets")]
        arrays = {key: schema.array(file, key, path) for key in (*_COLUMNS, *strings)}
    if fault := _fault(arrays):
        raise schema.damaged(path, fault)
    return DatasetIndex(
        name=str(attributes["name"]),
        digest=str(attributes["digest"]),
        image_split=arrays["image_split"],
        caption_id=arrays["caption_id"],
        caption_image=arrays["caption_image"],
        **{key: schema.Strings(arrays[key], arrays[f"{key}_offsets"]) for key in _STRINGS},
    )
