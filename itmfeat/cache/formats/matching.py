"""Region features of other projects: which image each entry is of, and its regions into a cache.

A format first walks over its entries without their values, for all lengths must be known before the file is
made; then it loads the regions of one image after another, in the order of the index.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache.index import DatasetIndex, read_index
from itmfeat.cache.reader import holds
from itmfeat.cache.writer import FeatureSpec, FeatureWriter
from itmfeat.errors import DataError, Note, UsageError

T = TypeVar("T")
Floats = NDArray[np.float32]

RANGE_ITEMS = 64
_ENDINGS = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
_COCO = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{1,18})")
_AMBIGUOUS = -1


def forms(name: str) -> "list[str | int]":
    """What a name can be known as: itself, without folder and ending, and the number in a COCO name."""
    if not name:  # an index may lack file names
        return []
    path = PurePosixPath(name)
    bare = path.stem if path.suffix.lower() in _ENDINGS else path.name
    number = _COCO.fullmatch(bare)
    return [name, bare, *([int(number[1])] if number else [])]


class Matching(Generic[T]):
    """The entries of a source (places of its values), found by the names that the images of an index have."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self.entries: dict[int, T] = {}  # row of the image -> where its regions are
        self._strangers = 0
        self._rows: dict[str | int, int] = {}
        for row, names in enumerate(zip(index.image_id.tolist(), index.image_file.tolist(), strict=True)):
            for form in {form for name in names for form in forms(name)}:
                self._rows[form] = row if self._rows.get(form, row) == row else _AMBIGUOUS

    def row(self, name: str, where: object) -> int | None:
        """The image that an entry is of; None, and counted, if the index has no such image."""
        found = {self._rows[form] for form in forms(name) if form in self._rows}
        if len(found) > 1 or _AMBIGUOUS in found:
            raise DataError(
                f"{where}: {name!r} stands for more than one image of {self.index.name}; "
                "name it as the image ids of the cache do"
            )
        self._strangers += not found
        return found.pop() if found else None

    def complete(self, source: Path, note: Note) -> None:
        """All images must have been found; what was left out is mentioned."""
        lacking = [row for row in range(self.index.images) if row not in self.entries]
        if lacking:
            named = ", ".join(self.index.image_id[row] for row in lacking[:3])
            raise DataError(
                f"{source} lacks {len(lacking)} of the {self.index.images} images of {self.index.name}, "
                f"as {named}; name a folder that holds the files of all splits"
            )
        if self._strangers:
            note(f"{source}: left out {self._strangers} entries, their images are not in {self.index.name}")


@dataclass(frozen=True)
class Regions:
    """The regions of one image, as the source has them."""

    features: NDArray[Any]  # (n, D)
    boxes: NDArray[Any] | None = None  # (n, 4) x1, y1, x2, y2 in pixels
    size: tuple[float, float] = (1, 1)  # width and height of the image in pixels
    scores: NDArray[Any] | None = None  # (n,)


@dataclass(frozen=True)
class Source:
    """All images of an index in a source, in the order of the index."""

    lengths: NDArray[np.int64]  # (images,)
    dim: int
    boxed: bool
    load: Callable[[int], Regions]  # row of an image -> its regions
    origin: dict[str, Any]  # format, files: for the fingerprint


def index_of(cache: Path) -> DatasetIndex:
    """The index that an import fills with features; a DataError if there is none yet."""
    if not (cache / "dataset.h5").exists():
        raise DataError(
            f"{cache} has no dataset.h5 to match images with; "
            f"make it with `itmfeat extract DATASET --image-backbone none --cache {cache}`"
        )
    return read_index(cache / "dataset.h5")


def listing(source: Path, files: list[Path]) -> dict[str, Any]:
    """Count, bytes and a digest of the names and sizes: the names alone would be megabytes."""
    sizes = [path.stat().st_size for path in files]
    digest = hashlib.sha256()
    for path, size in zip(files, sizes, strict=True):
        digest.update(f"{path.relative_to(source).as_posix()}\0{size}\n".encode())
    return {"count": len(files), "bytes": sum(sizes), "names": digest.hexdigest()}


def file_name(backbone: str) -> str:
    """The name of a backbone; a UsageError unless it can be a file's."""
    if not re.fullmatch(r"\w[\w.-]*", backbone):
        raise UsageError(f"--backbone {backbone!r} must be a plain name, as butd: it becomes a file's")
    return backbone


def versions() -> str:
    """The libraries that an import depends on, for the attribute of that name."""
    return json.dumps({name: version(name) for name in ("itmfeat", "numpy", "torch")}, sort_keys=True)


def write_regions(
    source: Source, index: DatasetIndex, cache: Path, backbone: str, dtype: str, note: Note
) -> Path:
    """Write `image/BACKBONE.h5` and return the cache; resumes, and keeps a finished file."""
    spec = FeatureSpec(
        kind="image",
        backbone=file_name(backbone),
        dataset=index.digest,
        lengths=source.lengths,
        dim=source.dim,
        dtype=dtype,
        boxed=source.boxed,
        range_items=RANGE_ITEMS,
        fingerprint=json.dumps(
            {**source.origin, "weights": "unknown", "boxes": source.boxed, "dim": source.dim}, sort_keys=True
        ),
        versions=versions(),
    )
    path = cache / "image" / f"{backbone}.h5"
    if holds(path, spec):
        return cache
    cut = 0
    with FeatureWriter(path, spec) as writer:
        for part in writer.pending:
            payloads, beyond = _stacked([source.load(row) for row in writer.items(part)], source.boxed)
            writer.write(part, **payloads)
            cut += beyond
        writer.finish()
    if cut:
        note(f"{path}: {cut} boxes reach more than a pixel beyond their image and were cut at its edge")
    return cache


def _stacked(items: list[Regions], boxed: bool) -> tuple[dict[str, NDArray[Any]], int]:
    """The payloads of a range, and how many of its boxes lie beyond their image."""
    payloads = {"features": np.concatenate([item.features for item in items])}  # (vectors, D)
    if not boxed:
        return payloads, 0
    parts = [_normalised(item) for item in items]
    payloads["boxes"] = np.concatenate([boxes for boxes, _ in parts])  # (vectors, 4)
    payloads["scores"] = np.concatenate(
        [np.zeros(len(item.features), np.float32) if item.scores is None else item.scores for item in items]
    )
    return payloads, sum(beyond for _, beyond in parts)


def _normalised(item: Regions) -> tuple[Floats, int]:
    """Boxes (n, 4) in parts of the image's width and height, cut at its edges, and how many lay beyond.

    Rounding while a detector scales an image moves an edge by up to a pixel; more is counted. No numbers stay
    what they are, and the writer refuses them.
    """
    assert item.boxes is not None
    boxes = item.boxes.astype(np.float64)
    sides = np.array([*item.size, *item.size], np.float64)
    beyond = ((boxes < -1) | (boxes > sides + 1)).any(axis=1)
    inside = np.where(np.isfinite(boxes), np.clip(boxes / sides, 0, 1), np.nan)
    return inside.astype(np.float32), int(beyond.sum())
