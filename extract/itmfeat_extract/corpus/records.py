"""Records of an image and its captions, under the names that their fields go by in the wild."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from itmfeat.errors import DataError
from itmfeat_extract.corpus.rows import Row

IMAGE = (
    "image",
    "image_path",
    "image_file",
    "image_name",
    "file_name",
    "filename",
    "filepath",
    "img",
    "path",
)
CAPTION = ("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "title", "comment")
SPLIT = "split"
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERED = re.compile(r"(caption|text|sentence)_?\d+")


@dataclass(frozen=True, slots=True)
class Record:
    """What one line, object or sample says of an image; several may speak of the same."""

    key: str  # equal for the same image
    files: tuple[str, ...]
    captions: list[str]
    split: str | None


def split_in(name: str) -> str | None:
    """The split that the name of a file or folder tells, as `train-00001.tar` or `coco_val`."""
    found = [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS]
    return SPLITS[found[-1]] if found else None


def files_of(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names that the image of a record may go by."""
    folder, name = entry.get("filepath"), entry.get("filename")
    if isinstance(folder, str) and isinstance(name, str) and folder and name:  # as in Karpathy's files
        return f"{folder}/{name}", name
    found = next((entry[key] for key in IMAGE if entry.get(key) not in (None, "")), None)
    if not isinstance(found, str):
        raise DataError(f"{where} names no image: one of {', '.join(IMAGE)} must be the name of a file")
    return (found,)


def captions_of(entry: Mapping[str, Any], where: str) -> list[str]:
    """All captions of a record: a text, a list of texts, or `caption_1`, `caption_2`, ..."""
    found = next((entry[key] for key in CAPTION if entry.get(key) is not None), None)
    if found is None:
        found = [entry[key] for key in entry if _NUMBERED.fullmatch(key) and entry[key] not in (None, "")]
    captions = _texts(found)
    if not captions:
        raise DataError(
            f"{where} has no caption: one of {', '.join(CAPTION)} must be a text or a list of texts"
        )
    return captions


def split_of(entry: Mapping[str, Any], where: str) -> str | None:
    """The split that a record names."""
    found = entry.get(SPLIT)
    if found in (None, ""):
        return None
    if not isinstance(found, str) or found.lower() not in SPLITS:
        raise DataError(f"{where}: the split {found!r} is none of {', '.join(SPLITS)}")
    return SPLITS[found.lower()]


def is_caption(key: str) -> bool:
    """Whether a column holds captions."""
    return key in CAPTION or _NUMBERED.fullmatch(key) is not None


def grouped(records: Iterable[Record], source: str) -> list[Row]:
    """One row an image, in the order of first mention; captions are numbered as they stand."""
    rows: dict[str, Row] = {}
    number = 0
    for record in records:
        row = rows.setdefault(record.key, Row(record.key, record.files, record.split, [], []))
        if row.split != record.split:
            raise DataError(
                f"{source}: image {record.key} stands in two splits, {row.split} and {record.split}"
            )
        row.captions.extend(record.captions)
        row.caption_ids.extend(range(number, number + len(record.captions)))
        number += len(record.captions)
    without = [row.id for row in rows.values() if row.split is None]
    if 0 < len(without) < len(rows):
        raise DataError(f"{source}: {len(without)} images have no split, the first is {without[0]}")
    return list(rows.values())


def _texts(found: Any) -> list[str] | None:
    """A text, a list of texts or of Karpathy's sentences, or such a list as JSON; None for all else."""
    if isinstance(found, str):
        listed = _texts(_json_list(found)) if found.startswith("[") else None
        return listed or [found]
    if isinstance(found, Mapping):
        found = found.get("raw")
    if not isinstance(found, list):
        return None
    texts = [text.get("raw") if isinstance(text, Mapping) else text for text in found]
    captions = [text for text in texts if isinstance(text, str)]
    return captions if len(captions) == len(texts) else None


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
