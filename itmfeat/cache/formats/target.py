"""What exports share: an undamaged source, a disk with room, a folder that appears when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itmfeat.errors import DataError, ItmfeatError, disk_full


@contextmanager
def new_folder(target: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """A folder beside `target` to write into, renamed to it at the end of the block.

    `patterns` are those of the files to write: what an interrupted export left of them is removed first.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DataError(f"{target} exists already; name a new folder, or remove that one")
    whole = target.absolute()
    part = whole.with_name(f"{whole.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        for left in [path for pattern in patterns for path in part.glob(pattern)]:
            left.unlink()
        yield part
        os.replace(part, whole)
    except OSError as error:
        raise disk_full(error, target, "") or error from None


def check_room(place: Path, needed: int) -> None:
    """An ItmfeatError if the disk of a folder has fewer bytes free than an export needs."""
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ItmfeatError(
            f"the export needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on the disk of "
            f"{place}; make room, or name a target on another disk"
        )
