"""Arrow and Parquet tables, with pictures in them or beside: what Hugging Face's `datasets` saves on disk."""

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from itmfeat.errors import DataError
from itmfeat_extract.corpus.annotations import field, load
from itmfeat_extract.corpus.arrow import open_table
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.inside import check_name, contained, open_inside
from itmfeat_extract.corpus.records import (
    IMAGE,
    SPLIT,
    SPLITS,
    Record,
    captions_of,
    files_of,
    grouped,
    is_caption,
    split_in,
    split_of,
)
from itmfeat_extract.corpus.rows import LAYOUT, assemble

# Columns that tell images apart where the picture itself is in the table and stands once a caption.
_IDS = ("image_id", "img_id", "imgid", "cocoid", "filename", "file_name", "key")

_Files = list[tuple[Path, str | None]]


def read_datasets(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """A folder that `save_to_disk` wrote, or a copy of a repository with Parquet files."""
    files = _saved(root)
    if not files:
        found = sorted(contained(root, file) for file in root.rglob("*.parquet") if file.is_file())
        splits = [split_in(str(file.relative_to(root))) for file in found]
        if len(set(splits)) > 1 and None in splits:
            raise DataError(
                f"{root}: some Parquet files are called after a split and some are not: rename them"
            )
        several = len(set(splits)) > 1  # one split alone, as in many mirrors, is none
        files = [(file, split if several else None) for file, split in zip(found, splits, strict=True)]
    if not files:
        raise DataError(
            f"datasets: neither dataset_dict.json nor state.json nor a Parquet file is in {root}: "
            f"give the folder of `save_to_disk` with --root DIR; {LAYOUT}"
        )
    return read_tables("datasets", root, files, fractions)


def read_tables(name: str, root: Path, files: _Files, fractions: SplitFractions | None) -> Corpus:
    """The images of Arrow or Parquet files, each with its split; pictures in them are left where they are."""
    pictures = {open_table(file).picture for file, _ in files}
    if len(pictures) > 1:
        raise DataError(f"{name}: the tables in {root} differ in their columns: use tables of one dataset")
    (picture,) = pictures
    source = files[0][0].name if len(files) == 1 else f"{len(files)} tables"
    records = (record for file, split in files for record in _records(root, file, split, picture))
    # Absolute: another machine stands in another folder.
    opener = Pictures(root.absolute(), picture) if picture else None
    rows = grouped(records, source)
    folders = ("", "images", "Images")
    return assemble(name, root, rows, source=source, folders=folders, fractions=fractions, opener=opener)


@dataclass(frozen=True)
class Pictures:
    """Opens pictures that are in tables, by `FILE#ROW`."""

    root: Path
    column: str

    def __call__(self, name: str) -> BinaryIO:
        """The bytes of a picture, or of the file that stands for it."""
        file, _, row = name.rpartition("#")
        found = open_table(contained(self.root, self.root / file)).cell(self.column, int(row))
        if isinstance(found, dict):
            content, place = found.get("bytes"), found.get("path")
            if content is None and place:
                return open_inside(self.root, place)
            found = content
        if not isinstance(found, bytes):
            raise DataError(f"{name} has no picture")
        return io.BytesIO(found)


def _saved(root: Path) -> _Files:
    """The Arrow files of `save_to_disk`: of one dataset, or of a folder a split."""
    listed = root / "dataset_dict.json"
    if not listed.is_file():
        return [(file, None) for file in _data_files(root, root)] if (root / "state.json").is_file() else []
    files: _Files = []
    for name in field(load(contained(root, listed)), "splits", list, str(listed)):
        if not isinstance(name, str) or (split := split_in(check_name(name, str(listed)))) is None:
            raise DataError(f"{listed}: the split {name!r} is none of {', '.join(SPLITS)}: rename it")
        files += [(file, split) for file in _data_files(root, root / name)]
    return files


def _data_files(root: Path, folder: Path) -> list[Path]:
    state = contained(root, folder / "state.json")
    if not state.is_file():
        raise DataError(f"{state} is missing: copy the folder again, whole")
    names = [
        check_name(field(entry, "filename", str, str(state)), str(state))
        for entry in field(load(state), "_data_files", list, str(state))
    ]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(
            f"{folder} lacks {len(missing)} of its files, the first is {missing[0]}: copy it again"
        )
    return [contained(root, folder / name) for name in names]


def _records(root: Path, file: Path, split: str | None, picture: str) -> Iterator[Record]:
    table, place = open_table(file), file.relative_to(root).as_posix()
    wanted = [
        name
        for name in table.columns
        if name != picture and (name in (*IMAGE, *_IDS, SPLIT, "filepath") or is_caption(name))
    ]
    for number, entry in enumerate(table.rows(wanted)):
        where, name = f"{file}, row {number}", f"{place}#{number}"
        files = (name,) if picture else tuple(map(posixpath.normpath, files_of(entry, where)))
        key = files[0]
        if picture:
            key = next((str(entry[column]) for column in _IDS if entry.get(column) not in (None, "")), name)
        yield Record(key, files, captions_of(entry, where), split_of(entry, where) or split)
