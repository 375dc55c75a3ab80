"""Any folder of image files with a table of their captions: CSV, TSV, JSON lines, Parquet, JSON lists."""

import csv
import io
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError
from itmfeat_extract.corpus import tables
from itmfeat_extract.corpus.annotations import parsed, text, unquoted
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.inside import contained
from itmfeat_extract.corpus.records import (
    CAPTION,
    IMAGE,
    Record,
    captions_of,
    files_of,
    grouped,
    is_caption,
    split_in,
    split_of,
)
from itmfeat_extract.corpus.rows import LAYOUT, assemble
from itmfeat_extract.corpus.samples import read_loose

Entries = Iterator[tuple[Mapping[str, Any], str]]
"""Records as they stand, each with where it stands."""

_FOLDERS = ("", "images", "Images")
_PARQUET = ".parquet"
_PLAIN = ("captions", "metadata", "annotations")  # a table of one of these names goes before others


def read_folder(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """A folder with a table of images and captions, or with a text file beside each image.

    Tables that are called after splits (`train.csv`, `val.csv`) tell them, or a column `split` does.
    """
    files = _chosen(
        [file for file in sorted(root.iterdir()) if file.suffix.lower() in (*_READ, _PARQUET)], root
    )
    kinds = sorted({file.suffix.lower() for file, _ in files})
    if len(kinds) > 1:
        raise DataError(f"{root} holds tables of the kinds {', '.join(kinds)}: leave those of one kind")
    if not kinds:
        return read_loose("folder", root, fractions)
    read = tables.read_tables if kinds == [_PARQUET] else _read
    return read("folder", root, files, fractions)


def read_albef(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """The JSON lists of ALBEF and BLIP: `*_train.json`, `*_val.json`, `*_test.json`, in `root` or below."""
    for folder in (root, root / "annotation", root / "annotations"):
        found = sorted(file for file in folder.glob("*.json") if not file.stem.endswith("_gt"))
        if files := _chosen(found, root):
            return _read("albef", root, files, fractions)
    raise DataError(f"albef: no *_train.json, *_val.json, *_test.json in {root}: give --root DIR; {LAYOUT}")


def _chosen(files: Sequence[Path], root: Path) -> list[tuple[Path, str | None]]:
    """The tables to read, each with its split: all that are called after one, or the only one."""
    files = [contained(root, file) for file in files if file.is_file()]
    splits = [split_in(file.stem) for file in files]
    if len(files) > 1 and all(splits):
        found = zip(files, splits, strict=True)
        return sorted(found, key=lambda pair: SPLITS.index(str(pair[1])))
    if len(files) > 1:
        files = [file for file in files if file.stem.lower() in _PLAIN] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise DataError(
            f"{files[0].parent} holds several tables ({names}): leave one, or name them after the splits "
            "train, val and test"
        )
    return [(file, None) for file in files]  # the only one, whatever its name: it is split by fractions


def _read(
    name: str, root: Path, files: list[tuple[Path, str | None]], fractions: SplitFractions | None
) -> Corpus:
    source = " and ".join(file.name for file, _ in files)
    records = (record for file, split in files for record in _records(file, split))
    return assemble(
        name, root, grouped(records, source), source=source, folders=_FOLDERS, fractions=fractions
    )


def _records(file: Path, split: str | None) -> Iterator[Record]:
    for entry, where in _READ.get(file.suffix.lower(), _json)(file):
        files = tuple(map(posixpath.normpath, files_of(entry, where)))
        yield Record(files[0], files, captions_of(entry, where), split_of(entry, where) or split)


class _Bare(csv.excel):
    quoting = csv.QUOTE_NONE


def _delimited(path: Path) -> Entries:
    """Rows of a table with a header, or of two columns without: the image, then the caption."""
    content = text(path)
    header = content.split("\n", 1)[0]
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;|\t", key=header.count)
    # Tabs do not stand in captions, so there quotes are mostly the author's own.
    dialect = _Bare if mark == "\t" else csv.excel
    lines = csv.reader(io.StringIO(content, newline=""), dialect, delimiter=mark, strict=True)
    names: list[str] = []
    try:
        for fields in lines:
            where = f"{path}, line {lines.line_num}"
            row = [unquoted(value.strip()) if mark == "\t" else value for value in fields]
            if not names:
                names = [value.strip().lower() for value in row]
                if set(names) & set(IMAGE) and any(map(is_caption, names)):
                    continue
                names = _headless(names, where)
            if not any(row):
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{where} has {len(row)} fields where {len(names)} are expected: quote the caption"
                )
            yield dict(zip(names, row, strict=True)), where
    except csv.Error as error:
        where = f"{path}, line {lines.line_num}"
        raise DataError(f"{where}: {error}: quote captions, and double the quotes in them") from None


def _headless(row: Sequence[str], where: str) -> list[str]:
    if len(row) == 2 and "." in row[0]:
        return ["image", "caption"]
    raise DataError(
        f"{where} is no header: name a column of files {' or '.join(IMAGE[:3])}, ..., and one of captions "
        f"{' or '.join(CAPTION[:3])}, ..."
    )


def _lines(path: Path) -> Entries:
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(parsed(line, where), where), where


def _json(path: Path) -> Entries:
    content = parsed(text(path), str(path))
    if not isinstance(content, list):
        raise DataError(f"{path} holds no JSON list of images and captions")
    for number, entry in enumerate(content):
        where = f"{path}, entry number {number}"
        yield _object(entry, where), where


def _object(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is no JSON object")
    return entry


_READ: dict[str, Callable[[Path], Entries]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _lines,
}
