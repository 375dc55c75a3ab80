"""Annotation files, read strictly: what does not fit is one sentence that names the file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from itmfeat.errors import DataError
from itmfeat_extract.corpus.inside import contained

T = TypeVar("T")

_KINDS: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def find(root: Path, folders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first of `names`, in this order, that exists in one of the folders below root."""
    paths = (root / folder / name for name in names for folder in folders)
    return next((contained(root, path) for path in paths if path.is_file()), None)


def text(path: Path) -> str:
    """The content of a UTF-8 file, with or without the mark that Windows programs put in front."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8 text (line {line}): save it as UTF-8, or download or unpack it again"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    content = parsed(text(path), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object, so it is not the file that its name says")
    return content


def parsed(content: str | bytes, where: str) -> Any:
    """What a JSON text says; `where` says whose it is if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and absurd numbers
        raise DataError(f"{where} is not valid JSON ({error}): download or unpack it again") from None


def field(record: object, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, which must be of `kind`; `where` says whose it is if it is not."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {key!r} is missing or not {_KINDS[kind]}")
    return value


def one_line(caption: str) -> str:
    """A caption without line breaks and outer blanks, otherwise as its author wrote it."""
    return " ".join(filter(None, map(str.strip, caption.splitlines())))


def unquoted(caption: str) -> str:
    """A caption without the quotes of CSV, if it has them.

    A lone quote inside, as in `"Hi" says "Bo"`, shows that the outer ones are the author's own.
    """
    inner = caption[1:-1].replace('""', "")
    if len(caption) < 2 or caption[0] + caption[-1] != '""' or '"' in inner:
        return caption
    return caption[1:-1].replace('""', '"')
