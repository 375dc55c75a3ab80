"""From what the annotations say of each image to a `Corpus`: the way that all readers share."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus.annotations import one_line
from itmfeat_extract.corpus.base import Corpus, Opener, SplitFractions
from itmfeat_extract.corpus.inside import check_name, contained, writable
from itmfeat_extract.corpus.splits import DEFAULT, draw

LAYOUT = "data/README.md shows the layout"


@dataclass(frozen=True, slots=True)
class Row:
    """One image as an annotation file names it."""

    id: str
    files: tuple[str, ...]  # the names it may go by in an image folder, likeliest first
    split: str | None  # None in all rows of a dataset that comes without splits
    captions: list[str]
    caption_ids: list[int]


def assemble(
    name: str,
    root: Path,
    rows: Sequence[Row],
    *,
    source: str,
    folders: Sequence[str],
    fractions: SplitFractions | None,
    opener: Opener | None = None,
) -> Corpus:
    """Find the images of `rows` in `folders` below root, and split them if `source` did not.

    Images that an `opener` opens are not looked for: it knows them by the first of their files.
    """
    if not rows:
        raise DataError(f"{name}: {source} names no image")
    numbers = [number for row in rows for number in row.caption_ids]
    if numbers and not (min(numbers) >= -(2**63) and max(numbers) < 2**63):
        raise DataError(f"{name}: {source} numbers a caption beyond 64 bits: write a smaller number")
    splits, said = _splits(name, rows, source, fractions)
    return Corpus(
        name=name,
        root=root,
        image_ids=[row.id for row in rows],
        image_files=[row.files[0] for row in rows] if opener else _locate(name, root, rows, source, folders),
        image_splits=splits,
        captions=[_caption(raw, row, source) for row in rows for raw in row.captions],
        caption_ids=numbers,
        caption_image=np.repeat(np.arange(len(rows)), [len(row.captions) for row in rows]),
        origin=f"{source}; {said}",
        opener=opener,
    )


def _splits(
    name: str, rows: Sequence[Row], source: str, fractions: SplitFractions | None
) -> tuple[list[str], str]:
    """A split for each row, and what was done; a split that the source lacks is made out of its train."""
    own = [row.split for row in rows if row.split is not None]
    if own and fractions is None:
        return own, "splits as given there"
    chosen = fractions or SplitFractions(None, None)
    if not own:
        val, test = (DEFAULT if part is None else part for part in (chosen.val, chosen.test))
        chosen = replace(chosen, val=val, test=test)
    asked = {split for split, part in (("val", chosen.val), ("test", chosen.test)) if part}
    if own and ("train" not in own or not asked or asked & set(own)):
        raise UsageError(f"{name} has its own splits ({source}): leave the split fractions out")
    drawn = iter(draw(own.count("train") if own else len(rows), chosen))
    splits = [row.split if row.split in ("val", "test") else next(drawn) for row in rows]
    made = "splits as given there, and out of train" if own else "splits"
    shares = f"val {chosen.val or 0:g}, test {chosen.test or 0:g}"
    return splits, f"{made} drawn at random: {shares}, seed {chosen.seed}"


def _caption(raw: str, row: Row, source: str) -> str:
    caption = one_line(raw)
    if not caption:
        raise DataError(f"{source}: image {row.files[0]} has an empty caption")
    if not writable(caption):
        raise DataError(f"{source}: image {row.files[0]} has a caption with half a character (a surrogate)")
    return caption


def _locate(name: str, root: Path, rows: Sequence[Row], source: str, folders: Sequence[str]) -> list[str]:
    """The file of each image, relative to root: one listing a folder, for COCO has 123k files."""
    for row in rows:
        for file in row.files:
            check_name(file, source)
    there, links = _listing(root, folders, {os.path.dirname(file) for row in rows for file in row.files})
    found = [next((path for path in _paths(folders, row.files) if path in there), None) for row in rows]
    for path in links.intersection(filter(None, found)):
        contained(root, root / path)
    missing = [row.files[0] for row, path in zip(rows, found, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of the {len(rows)} images in {source} are missing, the first "
            f"is {missing[0]}: put the image files into {root / folders[0]} ({LAYOUT})"
        )
    return [path for path in found if path is not None]


def _listing(root: Path, folders: Sequence[str], inner: Iterable[str]) -> tuple[set[str], set[str]]:
    """What stands in those folders, as paths relative to root, and which of it are links."""
    there, links = set(), set()
    for path in {path for part in inner for path in _paths(folders, [part])}:
        try:
            with os.scandir(contained(root, root / path)) as entries:
                for entry in entries:
                    place = f"{path.rstrip('/')}/{entry.name}".lstrip("/")
                    there.add(place)
                    if entry.is_symlink():
                        links.add(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return there, links


def _paths(folders: Sequence[str], files: Iterable[str]) -> Iterable[str]:
    """Every file in every folder, in the order of preference; the folder "" is root itself."""
    return (f"{folder}/{file}" if folder else file for file in files for folder in folders)
