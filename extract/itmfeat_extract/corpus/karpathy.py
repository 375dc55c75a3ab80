"""The split files of Karpathy & Fei-Fei (2015): `dataset_{coco,flickr30k,flickr8k}.json`.

They hold splits and captions together, and nearly every paper of the field reports on them.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from itmfeat.errors import DataError
from itmfeat_extract.corpus.annotations import field, load
from itmfeat_extract.corpus.rows import Row

# restval: the part of COCO's val2014 that is neither val nor test; the field trains on it.
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def rows(path: Path) -> list[Row]:
    """The images of a Karpathy file in its order, each with all of its captions and their sentids.

    An image's id is its `cocoid` where it has one, else its file name without the ending, so
    that the same photograph has the same id in every form of a dataset.
    """
    images = field(load(path), "images", list, str(path))
    return [_row(image, number, path) for number, image in enumerate(images)]


def _row(image: Any, number: int, path: Path) -> Row:
    name = field(image, "filename", str, f"{path}, image number {number}")
    where = f"{path}, image {name}"
    split = field(image, "split", str, where)
    if split not in _SPLITS:
        raise DataError(f"{where}: the split {split!r} is none of {', '.join(_SPLITS)}")
    sentences = field(image, "sentences", list, where)
    if not sentences:
        raise DataError(f"{where} has no sentences")
    folder = field(image, "filepath", str, where) if "filepath" in image else ""
    coco = "cocoid" in image
    return Row(
        id=str(field(image, "cocoid", int, where)) if coco else PurePosixPath(name).stem,
        files=(f"{folder}/{name}", name) if folder else (name,),
        split=_SPLITS[split],
        captions=[field(sentence, "raw", str, where) for sentence in sentences],
        caption_ids=[field(sentence, "sentid", int, where) for sentence in sentences],
    )
