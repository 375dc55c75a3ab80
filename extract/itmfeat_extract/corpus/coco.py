"""MS-COCO: Karpathy's split file, or the captions files as cocodataset.org ships them."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from itmfeat.errors import DataError
from itmfeat_extract.corpus import karpathy
from itmfeat_extract.corpus.annotations import field, find, load
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.rows import LAYOUT, Row, assemble
from itmfeat_extract.corpus.splits import draw

_PARTS = {
    year: {split: f"captions_{split}{year}.json" for split in ("train", "val")} for year in (2017, 2014)
}
_IMAGES = [f"{split}{year}" for year in _PARTS for split in ("train", "val")]
_FOLDERS = ["images", "", *(base + part for part in _IMAGES for base in ("images/", ""))]
_TEXTS = ("", "annotations")


def read_coco(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """COCO below `root`: `dataset_coco.json` if it is there, else `annotations/captions_*.json`.

    Without Karpathy's file, the train file is the train split, and the images of the val file are
    halved, with seed 0, into val and test (COCO's own test captions are secret); one file alone is
    split by `fractions`, by default val 0.1, test 0.1, seed 0. Images are found by id, under the names
    of 2014 or 2017: the two releases hold the same photographs.
    """
    path = find(root, _TEXTS, ["dataset_coco.json"])
    if path:
        source, rows = path.name, karpathy.rows(path)
    else:
        files = _captions_files(root)
        source = " and ".join(file.name for file in files.values())
        own = len(files) > 1
        rows = [row for split, path in files.items() for row in _rows(path, split if own else None)]
        if own:
            source += " (half of the val images are the test split)"
            rows = _halve(rows)
    rows = [replace(row, files=(*row.files, *_names(row.id))) for row in rows]
    return assemble("coco", root, rows, source=source, folders=_FOLDERS, fractions=fractions)


def _halve(rows: list[Row]) -> list[Row]:
    """Half of the val images become the test split."""
    halves = iter(draw(sum(row.split == "val" for row in rows), SplitFractions(test=0.5)))
    return [
        replace(row, split="test") if row.split == "val" and next(halves) == "test" else row for row in rows
    ]


def _captions_files(root: Path) -> dict[str, Path]:
    """The captions file of each split, all of one year: the other year's hold the same captions."""
    years = {}
    for year, names in _PARTS.items():
        found = {split: find(root, _TEXTS, [name]) for split, name in names.items()}
        years[year] = {split: path for split, path in found.items() if path}
    present = [year for year in years if years[year]]
    if len(present) > 1:
        present = [year for year in present if _has_images(root, year)] or present
    if len(present) > 1:
        raise DataError(
            f"coco: {root} holds the captions of 2014 and of 2017, which are the same: "
            "move the files of one year away"
        )
    if not present:
        raise DataError(
            f"coco: neither dataset_coco.json nor annotations/captions_*.json is in {root}: "
            f"give the folder that holds it with --root DIR; {LAYOUT}"
        )
    return years[present[0]]


def _has_images(root: Path, year: int) -> bool:
    return any((root / folder).is_dir() for folder in _FOLDERS if folder.endswith(str(year)))


def _rows(path: Path, split: str | None) -> list[Row]:
    """The images of a captions file in its order; captions of an image in the order of their ids.

    Karpathy's file has them in this order too, so the first five are the same five.
    """
    content = load(path)
    captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, entry in enumerate(field(content, "annotations", list, str(path))):
        where = f"{path}, annotation number {number}"
        caption = (field(entry, "id", int, where), field(entry, "caption", str, where))
        captions[field(entry, "image_id", int, where)].append(caption)
    rows = []
    for number, image in enumerate(field(content, "images", list, str(path))):
        where = f"{path}, image number {number}"
        key = field(image, "id", int, where)
        own = sorted(captions.pop(key, []))
        name = field(image, "file_name", str, where)
        rows.append(Row(str(key), (name,), split, [text for _, text in own], [i for i, _ in own]))
    _refuse_strays(path, rows, captions)
    return rows


def _refuse_strays(path: Path, rows: list[Row], captions: dict[int, list[tuple[int, str]]]) -> None:
    """COCO has no image without a caption and no caption without an image: such a file is cut."""
    bare = [row.files[0] for row in rows if not row.captions]
    if bare:
        raise DataError(
            f"{path}: {len(bare)} images have no caption, the first is {bare[0]}: "
            "take them out of 'images' or download the file again"
        )
    if captions:
        raise DataError(
            f"{path}: captions of {len(captions)} images that 'images' does not list, the first "
            f"has the id {min(captions)}: download the file again"
        )


def _names(image_id: str) -> tuple[str, str, str]:
    """What the two releases call a photograph."""
    name = f"{image_id:0>12}.jpg"
    return name, f"COCO_train2014_{name}", f"COCO_val2014_{name}"
