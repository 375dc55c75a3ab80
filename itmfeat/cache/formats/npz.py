"""Region features as one `.npz` file an image, as bottom-up-attention.pytorch (MILVLG) writes them.

`x` (n, D), `bbox` (n, 4) in pixels, `num_bbox`, `image_h`, `image_w`; others have `features` for `x`, or only
that. `info`, a pickled dictionary with classes and confidences, is never opened, since unpickling a file runs
what its author likes. So there are no scores.
"""

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from itmfeat.cache.formats.matching import (
    Matching,
    Regions,
    Source,
    index_of,
    listing,
    write_regions,
)
from itmfeat.errors import DataError, Note, silent

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, TokenError),
    *(OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, IndexError),
)
_BOXED = {"bbox", "image_h", "image_w"}


def read(
    source: Path,
    cache: Path,
    *,
    backbone: str = "butd",
    dtype: str = "float16",
    note: Note = silent,
) -> Path:
    """Import a folder of `.npz` files as `image/BACKBONE.h5` of a cache that has its `dataset.h5`.

    Files are found in folders of the folder too and matched by their names; boxes are kept if all have them.
    """
    index = index_of(cache)
    files = sorted(source.rglob("*.npz"))
    if not files:
        raise DataError(f"{source} holds no .npz file; name the folder with one file an image")
    table = _Table(Matching(index))
    for path in files:
        table.add(path)
    table.matching.complete(source, note)
    boxless = index.images - table.boxed
    if table.boxed and boxless:
        note(f"{source}: {boxless} images have no boxes, so none are stored")
    found = Source(
        lengths=np.array([table.lengths[row] for row in range(index.images)], np.int64),
        dim=table.dim,
        boxed=not boxless,
        load=lambda row: _regions(table.matching.entries[row], not boxless),
        origin={"format": "npz", "files": listing(source, files), "scores": False},
    )
    return write_regions(found, index, cache, backbone, dtype, note)


@dataclass
class _Table:
    """What the first pass finds, from the headers of the arrays alone."""

    matching: Matching[Path]
    dim: int = 0
    lengths: dict[int, int] = field(default_factory=dict)  # row of the image -> regions
    boxed: int = 0  # images with boxes

    def add(self, path: Path) -> None:
        """Note a file."""
        row = self.matching.row(path.stem, path)
        if row is None:
            return
        if row in self.matching.entries:
            raise DataError(f"{path} and {self.matching.entries[row]} are of the same image; take one away")
        with _opened(path) as archive:
            names = _names(archive)
            shape = _shape(archive, _features(names, path))
            counted = int(_array(archive, "num_bbox").item()) if "num_bbox" in names else shape[0]
        dim = shape[1] if len(shape) == 2 else 0
        self.dim = self.dim or dim
        if not dim or dim != self.dim or not shape[0] == counted > 0:
            raise DataError(
                f"{path}: the features have the shape {shape}, not {counted} vectors"
                f"{f' of {self.dim}' if self.dim else ''}; make the file again, one region a row"
            )
        self.boxed += names >= _BOXED
        self.matching.entries[row] = path
        self.lengths[row] = counted


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a file; whatever is wrong inside, at opening or in the block, is a DataError."""
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 wrote
            yield archive
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged or no .npz file of regions ({error}); copy it again") from error


def _names(archive: zipfile.ZipFile) -> set[str]:
    return {name.removesuffix(".npy") for name in archive.namelist()}


def _features(names: set[str], path: Path) -> str:
    """The array that holds the features."""
    for name in ("x", "features"):
        if name in names:
            return name
    raise DataError(f"{path} holds neither x nor features but {', '.join(sorted(names))}")


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array of numbers, from its header; it must be as large as it says."""
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
    size = archive.getinfo(f"{name}.npy").file_size
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} is no array of numbers")
    return tuple(shape)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of numbers, in the byte order of this machine."""
    _shape(archive, name)
    with archive.open(f"{name}.npy") as file:
        found = npy.read_array(file, allow_pickle=False)
    return np.asarray(found, found.dtype.newbyteorder("="))


def _regions(path: Path, boxed: bool) -> Regions:
    """The regions of an image."""
    with _opened(path) as archive:
        features = _array(archive, _features(_names(archive), path))
        if not boxed:
            return Regions(features)
        boxes = _array(archive, "bbox")
        width, height = (float(_array(archive, name).item()) for name in ("image_w", "image_h"))
    if boxes.shape != (len(features), 4) or not min(width, height) > 0:
        raise DataError(
            f"{path}: bbox has the shape {boxes.shape} for {len(features)} regions of an image of "
            f"{width:g} x {height:g}; make the file again"
        )
    return Regions(features, boxes, (width, height))
