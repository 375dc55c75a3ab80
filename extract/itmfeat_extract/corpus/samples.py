"""Samples of webdataset's kind: `KEY.jpg`, `KEY.txt`, `KEY.json` are an image and its texts."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itmfeat.errors import DataError
from itmfeat_extract.corpus.annotations import parsed
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.inside import contained
from itmfeat_extract.corpus.records import (
    CAPTION,
    Record,
    captions_of,
    grouped,
    is_caption,
    split_in,
    split_of,
)
from itmfeat_extract.corpus.rows import LAYOUT, assemble

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif")
TEXTS = ("txt", "caption", "json")
MOST_TEXT = 1 << 24  # bytes that a file with the captions of one image may have


@dataclass
class Sample:
    """What was found under one key."""

    picture: str = ""  # the name that the corpus opens it by
    texts: dict[str, bytes] = field(default_factory=dict)  # by ending

    def add(self, ending: str, content: bytes, where: str) -> None:
        """Put in one of its texts."""
        if len(content) > MOST_TEXT:
            raise DataError(f"{where} holds more than {MOST_TEXT >> 20} MiB of text: that is no caption")
        self.texts[ending] = content


def record(key: str, sample: Sample, split: str | None, where: str) -> Record:
    """The captions of a sample: of its JSON if that has some, else one a line of its text."""
    found: Any = parsed(sample.texts["json"], where) if "json" in sample.texts else {}
    entry = {name: value for name, value in found.items() if value} if isinstance(found, dict) else {}
    if any(map(is_caption, entry)):
        captions = captions_of(entry, where)
    else:
        captions = _lines(sample.texts.get("txt", sample.texts.get("caption")), where)
    return Record(key, (sample.picture,), captions, split_of(entry, where) or split)


def _lines(text: bytes | None, where: str) -> list[str]:
    if text is None:
        raise DataError(f"{where} has no caption: a .txt, or a .json with one of {', '.join(CAPTION)}")
    try:
        lines = [line for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{where}: its .txt is not UTF-8 text: write it again") from None
    if not lines:
        raise DataError(f"{where} has an empty caption")
    return lines


def distinct(records: list[Record]) -> Iterator[Record]:
    """The records, each with a key of its own: shards often number their samples from nought.

    Where a key stands twice, the place of the picture becomes a part of it.
    """
    counts = Counter(found.key for found in records)
    for found in records:
        again = counts[found.key] > 1
        yield replace(found, key=found.files[0].rpartition(".")[0]) if again else found


def read_loose(name: str, root: Path, fractions: SplitFractions | None) -> Corpus:
    """Images anywhere below a folder, each with its captions in a file of the same name beside it.

    Where all of them lie in folders that are called after splits (`train/`, `test/`), these tell them.
    """
    rows = grouped(_loose(name, root), str(root))
    if not rows:
        raise DataError(
            f"{name}: {root} holds no table (CSV, TSV, JSON lines, Parquet) and no image with a .txt of its "
            f"name beside it: give the folder that does with --root DIR; {LAYOUT}"
        )
    folders = [_split_of_folder(row.files[0]) for row in rows]
    if all(folders) and len(set(folders)) > 1 and not any(row.split for row in rows):
        rows = [replace(row, split=split) for row, split in zip(rows, folders, strict=True)]
    source = f"{len(rows)} images with their texts beside them"
    return assemble(name, root, rows, source=source, folders=("",), fractions=fractions)


def _split_of_folder(file: str) -> str | None:
    """What the uppermost of its folders says that is called after a split."""
    return next(filter(None, map(split_in, Path(file).parts[:-1])), None)


def _loose(name: str, root: Path) -> Iterator[Record]:
    """One record an image, folder by folder; texts without an image are none of ours."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for stem, sample in sorted(_in_folder(root, Path(folder), files).items()):
            if sample.picture and not sample.texts:
                raise DataError(f"{name}: no .txt is beside {root / sample.picture}: add one, or move it")
            if sample.picture:
                yield record(stem, sample, None, str(root / sample.picture))


def _in_folder(root: Path, folder: Path, files: Iterable[str]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for file in sorted(files):
        stem, _, ending = file.rpartition(".")
        place = (folder / stem).relative_to(root).as_posix()
        if stem and ending.lower() in TEXTS:
            path = contained(root, folder / file)
            with path.open("rb") as text:
                samples.setdefault(place, Sample()).add(ending.lower(), text.read(MOST_TEXT + 1), str(path))
        elif stem and ending.lower() in PICTURES:
            sample = samples.setdefault(place, Sample())
            if sample.picture:
                raise DataError(
                    f"{root / sample.picture} and {folder / file} are two images of one name, so their texts "
                    "are the same file: rename one, or take it out"
                )
            sample.picture = f"{place}.{ending}"
    return samples
