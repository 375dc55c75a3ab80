"""`dataset.h5`: image ids and files, captions, which image each caption belongs to, splits."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import schema, seal
from itmfeat.errors import DataError, disk_full

SPLITS = ("train", "val", "test")
_COLUMNS = ("image_split", "caption_id", "caption_image")
_STRINGS = ("image_id", "image_file", "caption")


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


def content_digest(arrays: dict[str, NDArray[np.generic]], name: str) -> str:
    """SHA-256 over the contents, whatever version of HDF5 stores them."""
    digest = hashlib.sha256(name.encode())
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        digest.update(f"\0{key}\0{value.dtype.str}\0{value.shape}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    image = io.BytesIO()  # HDF5 may crash on a full disk, plain writing does not
    try:
        with schema.create_file(image) as file:
            for key in _STRINGS:
                schema.put_strings(file, key, strings[key])
            for key in _COLUMNS:
                schema.put(file, key, columns[key])
            schema.put(file, "seal", np.zeros(schema.SEAL_BYTES, np.uint8))
            arrays = {key: value[...] for key, value in file.items() if key != "seal"}
            digest = content_digest(arrays, name)
            schema.set_attributes(
                file, {"schema": schema.SCHEMA, "kind": "dataset", "name": name, "digest": digest}
            )
            place = schema.Extent(file["seal"].id.get_offset(), (schema.SEAL_BYTES,), np.dtype("u1"))
        part.write_bytes(image.getvalue())
        seal.write_seal(part, [], place)
        if not path.exists():
            os.replace(part, path)
        elif read_index(path).digest != digest:
            raise DataError(
                f"{path.parent} already holds {name} with other images, captions or splits; "
                "choose another folder with --cache, or delete that one"
            )
    except OSError as error:
        raise disk_full(error, path, "") or error from None
    finally:
        part.unlink(missing_ok=True)
    return digest


def read_index(path: Path) -> DatasetIndex:
    """Open `dataset.h5`; a DataError in one sentence if it is missing, damaged or of another schema."""
    if not path.exists():
        raise DataError(
            f"{path.parent} is no cache: "
            "it has no dataset.h5; name another with --cache, or make one with `itmfeat extract`"
        )
    with schema.open_file(path) as file:
        found = schema.extent(file, "seal", path)
        if found is None:
            raise DataError(f"{path} is no index of itmfeat")
        seal.check_seal(path, [], found)
        attributes = schema.attributes(file)
        if attributes.get("schema") != schema.SCHEMA:
            raise DataError(f"{path} has schema {attributes.get('schema')}, not {schema.SCHEMA}")
        arrays = {key: schema.array(file, key, path) for key in _COLUMNS}
        strings = {
            key: schema.Strings(schema.array(file, key, path), schema.array(file, f"{key}_offsets", path))
            for key in _STRINGS
        }
    return DatasetIndex(
        name=str(attributes["name"]),
        digest=str(attributes["digest"]),
        image_split=arrays["image_split"],
        caption_id=arrays["caption_id"],
        caption_image=arrays["caption_image"],
        **strings,
    )
