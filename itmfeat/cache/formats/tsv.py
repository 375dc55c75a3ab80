"""Region features as tab-separated text, in the columns of bottom-up attention or of LXMERT.

Anderson et al., "Bottom-up and top-down attention" (arXiv 1707.07998), and Tan & Bansal, "LXMERT" (arXiv
1908.07490). A line an image, no header; arrays are base64 of little-endian numbers, row by row. The two write
width and height in different order. A line is up to a megabyte; memory holds the lines of one range.
"""

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache.formats.matching import Matching, Regions, Source, index_of, write_regions
from itmfeat.errors import DataError, Note, silent

COLUMNS = {
    "butd-tsv": ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    "lxmert-tsv": (
        *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
}
_LONGEST = 1 << 28  # bytes of a line; a file without line ends must not fill the memory


class _Place(NamedTuple):
    """Where the line of an image stands."""

    file: Path
    line: int
    start: int  # in bytes
    size: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def read(
    source: Path,
    cache: Path,
    *,
    backbone: str = "butd",
    dtype: str = "float16",
    note: Note = silent,
) -> Path:
    """Import a TSV file, or all of a folder, as `image/BACKBONE.h5` of a cache that has its `dataset.h5`.

    Object and attribute classes are left out; `objects_conf` becomes `scores`. A line that stands twice
    counts once; two different lines of one image are an error.
    """
    index = index_of(cache)
    files = _files(source)
    table = _Table(Matching(index))
    for path in files:
        for place, line in _lines(path):
            table.add(place, line)
    table.matching.complete(source, note)
    if table.repeated:
        note(f"{source}: {table.repeated} lines stand twice and were taken once")
    listed = [[path.name, path.stat().st_size] for path in files]
    found = Source(
        lengths=np.array([table.lengths[row] for row in range(index.images)], np.int64),
        dim=table.dim,
        boxed=True,
        load=table.load,
        origin={"format": table.format, "files": listed, "scores": table.format == "lxmert-tsv"},
    )
    return write_regions(found, index, cache, backbone, dtype, note)


def _files(source: Path) -> list[Path]:
    """The file, or those of a folder; some sets are cut into `NAME.tsv.0`, `NAME.tsv.1`, ..."""
    if not source.is_dir():
        if not source.exists():
            raise DataError(f"there is no {source}; name a TSV file or a folder of them")
        return [source]
    found = sorted({*source.glob("*.tsv"), *source.glob("*.tsv.[0-9]*")})
    if not found:
        raise DataError(f"{source} holds no .tsv file; name the folder that does")
    return found


def _lines(path: Path) -> Iterator[tuple[_Place, bytes]]:
    """The lines that are not blank, and where they stand. Not `csv`: it refuses fields of this size."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, _LONGEST), b""), start=1):
            if line.strip():
                yield _Place(path, number, start, len(line)), line
            start += len(line)


@dataclass
class _Table:
    """What the first pass finds: where each image stands, how many boxes it has, how long a vector is."""

    matching: Matching[_Place]
    format: str = ""
    dim: int = 0
    lengths: dict[int, int] = field(default_factory=dict)  # row of the image -> boxes
    repeated: int = 0

    def add(self, place: _Place, line: bytes) -> None:
        """Note a line. Its sizes are checked here, so that a cut file is found before anything is written."""
        if not self.format:
            self.format = _format(place, line)
        cells = self._cells(place, line)
        row = self.matching.row(cells["image_id"].decode(errors="replace").strip(), place)
        if row is None:
            return
        earlier = self.matching.entries.get(row)
        if earlier is not None:
            _same(earlier, place, line)
            self.repeated += 1
            return
        boxes = _number(cells, "num_boxes", place)
        values, rest = divmod(_decoded_size(cells, "features", place), 4 * boxes)
        self.dim = self.dim or values
        if rest or not values or values != self.dim:
            raise DataError(
                f"{place}: features are no {boxes} vectors of {self.dim or 'equal'} float32; "
                "the file is cut or damaged: copy it again"
            )
        self.matching.entries[row] = place
        self.lengths[row] = boxes

    def load(self, row: int) -> Regions:
        """The regions of an image, read again from its line."""
        place = self.matching.entries[row]
        cells = self._cells(place, _again(place))
        boxes = self.lengths[row]
        scored = "objects_conf" in cells
        return Regions(
            _floats(cells, "features", (boxes, self.dim), place),
            _floats(cells, "boxes", (boxes, 4), place),
            (_number(cells, "image_w", place), _number(cells, "image_h", place)),
            _floats(cells, "objects_conf", (boxes,), place) if scored else None,
        )

    def _cells(self, place: _Place, line: bytes) -> dict[str, bytes]:
        columns, cells = COLUMNS[self.format], line.rstrip(b"\r\n").split(b"\t")
        if len(cells) != len(columns):
            raise DataError(
                f"{place} has {len(cells)} columns, not the {len(columns)} of {self.format}; "
                "it is cut or of another kind: copy it again, or import each kind under its own --backbone"
            )
        return dict(zip(columns, cells, strict=True))


def _format(place: _Place, line: bytes) -> str:
    """The format that has as many columns as the first line."""
    found = line.count(b"\t") + 1
    for name, columns in COLUMNS.items():
        if len(columns) == found:
            return name
    counts = " or ".join(f"{len(columns)} ({name})" for name, columns in COLUMNS.items())
    raise DataError(f"{place} has {found} columns, not {counts}; this is no TSV of regions")


def _again(place: _Place) -> bytes:
    with place.file.open("rb") as file:
        file.seek(place.start)
        return file.read(place.size)


def _same(earlier: _Place, place: _Place, line: bytes) -> None:
    """An image may stand twice if both lines say the same of it; the spelling of its id may differ."""
    first, second = (text.rstrip(b"\r\n").split(b"\t", 1)[-1] for text in (_again(earlier), line))
    if first != second:
        raise DataError(f"{place} is of the same image as {earlier} and differs; take one of them away")


def _number(cells: dict[str, bytes], name: str, place: _Place) -> int:
    """A count or a size in pixels."""
    text = cells[name].strip()
    if not (text.isdigit() and len(text) < 10 and int(text)):
        raise DataError(
            f"{place}: {name} is {text[:20].decode(errors='replace')!r} and must be a whole number above 0"
        )
    return int(text)


def _decoded_size(cells: dict[str, bytes], name: str, place: _Place) -> int:
    """Bytes that a base64 cell stands for, from its length alone."""
    cell = cells[name].strip()
    if len(cell) % 4:
        raise DataError(f"{place}: {name} is cut in the middle; copy the file again")
    return len(cell) // 4 * 3 - cell[-2:].count(b"=")


def _floats(cells: dict[str, bytes], name: str, shape: tuple[int, ...], place: _Place) -> NDArray[Any]:
    try:
        raw = binascii.a2b_base64(cells[name].strip(), strict_mode=True)
    except binascii.Error as error:
        raise DataError(f"{place}: {name} is not base64; copy the file again") from error
    if len(raw) != 4 * int(np.prod(shape)):
        raise DataError(f"{place}: {name} has {len(raw)} bytes, not float32 of shape {shape}")
    return np.frombuffer(raw, "<f4").reshape(shape)
