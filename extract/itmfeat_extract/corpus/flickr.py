"""Flickr8k and Flickr30k in the forms in which people have them.

Karpathy's split file goes first, then the captions as the authors ship them, then the tables of
the copies on Kaggle. On the same photographs all three give the same captions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from itmfeat.errors import DataError
from itmfeat_extract.corpus import karpathy
from itmfeat_extract.corpus.annotations import find, text, unquoted
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.rows import LAYOUT, Row, assemble

# The authors' file of Flickr8k has five captions for this name, and nobody has the photograph.
_GHOST = "2258277193_586949ec62.jpg.1"

_TABLES = {("image", "caption"), ("image_name", "comment_number", "comment")}


@dataclass(frozen=True)
class _Layout:
    name: str
    token: str  # the authors' captions
    tables: tuple[str, ...]  # Kaggle's
    lists: dict[str, str]  # split -> the authors' list of its files
    texts: tuple[str, ...]  # folders that may hold those files
    images: tuple[str, ...]  # folders that may hold the photographs


_FLICKR8K = _Layout(
    name="flickr8k",
    token="Flickr8k.token.txt",
    tables=("captions.txt", "captions.csv"),
    lists={
        "train": "Flickr_8k.trainImages.txt",
        "val": "Flickr_8k.devImages.txt",
        "test": "Flickr_8k.testImages.txt",
    },
    texts=("", "Flickr8k_text"),
    images=(
        "images",
        "Images",
        "Flicker8k_Dataset",  # so spelt in the authors' archive
        "Flickr8k_Dataset",
        "Flickr8k_Dataset/Flicker8k_Dataset",
    ),
)
_FLICKR30K = _Layout(
    name="flickr30k",
    token="results_20130124.token",
    tables=("results.csv", "captions.txt", "captions.csv"),
    lists={},
    texts=("", "flickr30k_images"),
    images=(
        "images",
        "Images",
        "flickr30k-images",
        "flickr30k_images",
        "flickr30k_images/flickr30k_images",  # Kaggle's archive
    ),
)


def read_flickr8k(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """Flickr8k below `root`; without a split file or lists split by `fractions`.

    The default is val 0.1, test 0.1, seed 0. The authors' lists leave 91 images out; so does this.
    """
    return _read(_FLICKR8K, root, fractions)


def read_flickr30k(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """Flickr30k below `root`; without Karpathy's file split by `fractions`, as for Flickr8k.

    Only Karpathy's splits compare with published tables.
    """
    return _read(_FLICKR30K, root, fractions)


def _read(layout: _Layout, root: Path, fractions: SplitFractions | None) -> Corpus:
    split_file = f"dataset_{layout.name}.json"
    path = find(root, layout.texts, [split_file, layout.token, *layout.tables])
    if path is None:
        raise DataError(
            f"{layout.name}: none of {', '.join([split_file, layout.token, *layout.tables])} is in "
            f"{root}: give the folder that holds one with --root DIR; {LAYOUT}"
        )
    source = path.name
    if source == split_file:
        rows = karpathy.rows(path)
    else:
        pairs = _token_pairs(path) if source == layout.token else _table_pairs(path)
        rows, left_out = _by_lists(layout, root, _grouped(pairs))
        source += left_out
    return assemble(layout.name, root, rows, source=source, folders=layout.images, fractions=fractions)


def _grouped(pairs: Iterator[tuple[str, str]]) -> list[Row]:
    """One row a file name, in the order of first mention; captions are numbered as they stand."""
    rows: dict[str, Row] = {}
    for number, (name, caption) in enumerate(pairs):
        row = rows.setdefault(name, Row(PurePosixPath(name).stem, (name,), None, [], []))
        row.captions.append(caption)
        row.caption_ids.append(number)
    return [row for name, row in rows.items() if name != _GHOST]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it stands."""
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            yield line, f"{path}, line {number}"


def _token_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of lines like `1000268201.jpg#0<TAB>A child climbs the stairs .`."""
    for line, where in _lines(path):
        found = re.match(r"\s*([^\t]*\S)#\d+\t(.*)", line)
        if not found:
            raise DataError(f"{where} is not of the form 'FILE#NUMBER<TAB>CAPTION'")
        yield found[1], found[2]


def _table_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of Kaggle's tables; the header tells the separator and the columns.

    Not `csv.reader`: the tables quote some captions, most not, and leave commas and quotes bare.
    The separator behind a comment number may be missing, as it is in line 4 of `2199200615.jpg`.
    """
    lines = _lines(path)
    header, where = next(lines, ("", str(path)))
    mark = "|" if "|" in header else ","
    columns = tuple(column.strip().lower() for column in header.split(mark))
    if columns not in _TABLES:
        raise DataError(f"{where} has none of the headers {' or '.join(map(','.join, _TABLES))}")
    number = rf"\s*\d+(?:\s*[{mark}]|\s)" if len(columns) == 3 else ""
    pattern = re.compile(rf"\s*([^{mark}]*[^{mark}\s])\s*[{mark}]{number}(.*)")
    for line, where in lines:
        found = pattern.match(line)
        if not found:
            raise DataError(f"{where} is not of the form {mark.join(columns).upper()!r}")
        yield found[1], unquoted(found[2].strip()) if mark == "," else found[2]


def _by_lists(layout: _Layout, root: Path, rows: list[Row]) -> tuple[list[Row], str]:
    """The rows that the authors' lists name, each with its split, and a word on the others."""
    paths = {split: find(root, layout.texts, [name]) for split, name in layout.lists.items()}
    if not any(paths.values()):
        return rows, ""
    split_of: dict[str, str] = {}
    for split, path in paths.items():
        if path is None:
            raise DataError(
                f"{layout.name}: {layout.lists[split]} is missing in {root}: put all the "
                f"{len(paths)} lists there, or none"
            )
        for name in filter(None, map(str.strip, text(path).splitlines())):
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{path}: {name} stands in the list of {split_of[name]} too")
    strays = split_of.keys() - {row.files[0] for row in rows}
    if strays:
        raise DataError(
            f"{layout.name}: {len(strays)} images of the split lists have no caption, the first "
            f"is {min(strays)}: use lists and captions of one release"
        )
    kept = [replace(row, split=split_of[row.files[0]]) for row in rows if row.files[0] in split_of]
    return kept, f" with its split lists, which leave {len(rows) - len(kept)} images out"
