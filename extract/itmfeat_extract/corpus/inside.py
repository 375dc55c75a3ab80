"""Nothing outside a dataset's folder is read, whatever its files name and wherever its links lead."""

import os
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from itmfeat.errors import DataError


def check_name(name: str, where: str) -> str:
    """A file's name out of an annotation, if it stays below the folder that it is relative to."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: {name!r} leads out of the dataset's folder: name files relative to it")
    if "\0" in name or not writable(name):
        raise DataError(f"{where}: {name!r} is no file name")
    return name


def writable(text: str) -> bool:
    """Whether a text can be stored: JSON may name halves of characters, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def contained(root: Path, path: Path) -> Path:
    """`path`, which may be a link or below one; a DataError if it ends outside `root`.

    The folder itself may be a link.
    """
    home, place = os.path.realpath(root), os.path.realpath(path)
    if os.path.commonpath([home, place]) != home:
        raise DataError(
            f"{path} is a link out of {root}, and nothing outside that folder is read: put the files "
            "there, or give a folder that holds them too with --root"
        )
    return path


def open_inside(root: Path, name: str) -> BinaryIO:
    """Open a plain file below `root`."""
    path = contained(root, root / check_name(name, str(root)))
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise DataError(f"{path} is not there, or is no plain file")
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
