"""The tables of clip-retrieval: Parquet files with a row for each pair of an image and a caption."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache.index import SPLITS, DatasetIndex
from itmfeat.errors import DataError, MissingPackageError

IDENTITY = ("image_id", "image_path", "key", "url")
"""Columns that tell which image a row is of; the first that is there counts."""

NAMES = {split: split for split in SPLITS} | {
    "restval": "train",
    "dev": "val",
    "valid": "val",
    "validation": "val",
}
"""What a split is called in a table -> in a cache."""

_BLOCK = 2048  # rows that are read or written at once


def require_arrow() -> Any:
    """pyarrow with its reader of Parquet, which no other format needs."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "clip-retrieval keeps its tables as Parquet, which needs pyarrow: pip install 'itmfeat[tables]'"
        ) from error
    return pyarrow


@dataclass
class Pairs:
    """What the tables say, row by row."""

    images: dict[str, int] = field(default_factory=dict)  # id -> row in the index
    files: list[str] = field(default_factory=list)  # one an image
    splits: list[int] = field(default_factory=list)  # one an image
    first: list[int] = field(default_factory=list)  # the first row of each image
    image: list[int] = field(default_factory=list)  # of each row
    captions: list[str] = field(default_factory=list)  # of each row
    ids: list[int] = field(default_factory=list)  # of each caption, if the tables have them
    empty: int = 0  # rows without a caption

    def add(self, row: int, cells: dict[str, Any], identity: str, where: str) -> None:
        """Note a row."""
        name = cells[identity]
        if not name:
            raise DataError(f"{where} has no {identity}, so its image is not known; take the row away")
        image = self.images.setdefault(name, len(self.images))
        split = _split(cells["split"], where) if "split" in cells else -1
        if image == len(self.first):
            self.first.append(row)
            self.files.append(cells.get("image_path") or "")
            self.splits.append(split)
        elif self.splits[image] != split:
            raise DataError(
                f"{where}: image {name} is in {SPLITS[split]} here and elsewhere in another split"
            )
        self.image.append(image)
        self.captions.append(cells["caption"] or "")
        self.empty += not cells["caption"]
        if "caption_id" in cells:
            self.ids.append(cells["caption_id"])


def _split(name: str | None, where: str) -> int:
    if name not in NAMES:
        raise DataError(f"{where} has the split {name!r}; it must be one of {', '.join(NAMES)}")
    return SPLITS.index(NAMES[name])


def columns(table: Path) -> tuple[str, ...]:
    """Those columns of a table that are used here."""
    with _opened(table) as file:
        types = {column.name: str(column.type) for column in file.schema_arrow}
    found = [name for name in (*IDENTITY, "caption", "split") if name in types]
    if "caption" not in found or not set(IDENTITY) & set(found):
        raise DataError(
            f"{table} has the columns {', '.join(sorted(types))}, and an import needs caption and one of "
            f"{', '.join(IDENTITY)}; compute the embeddings of images and texts together"
        )
    if re.fullmatch(r"u?int[0-9]+", types.get("caption_id", "")):
        found.append("caption_id")
    return tuple(found)


@contextmanager
def _opened(table: Path) -> Iterator[Any]:
    """Open a Parquet file; whatever is wrong inside, at opening or in the block, is a DataError."""
    arrow = require_arrow()
    try:
        with arrow.parquet.ParquetFile(table) as file:
            yield file
    except (arrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{table} is damaged or no Parquet table of texts; copy it again") from error


def rows_of(table: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a table: texts, but `caption_id` an integer; None where a cell is empty."""
    text = require_arrow().string()
    with _opened(table) as file:
        for batch in file.iter_batches(_BLOCK, columns=list(columns)):
            cells = [
                (batch[name] if name == "caption_id" else batch[name].cast(text)).to_pylist()
                for name in columns
            ]
            for row in zip(*cells, strict=True):
                yield dict(zip(columns, row, strict=True))


def write_table(path: Path, index: DatasetIndex, rows: NDArray[np.int64]) -> None:
    """Write the table of some captions (rows,)."""
    arrow = require_arrow()
    types = {"caption_id": arrow.int64()}
    names = ("image_id", "image_path", "caption", "caption_id", "split")
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in names])
    path.parent.mkdir(exist_ok=True)
    with arrow.parquet.ParquetWriter(path, schema) as out:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            images = index.caption_image[block]
            cells = [
                [index.image_id[image] for image in images],
                [index.image_file[image] for image in images],
                [index.caption[row] for row in block],
                index.caption_id[block],
                [SPLITS[code] for code in index.image_split[images]],
            ]
            out.write_batch(arrow.record_batch([*map(arrow.array, cells)], schema=schema))
