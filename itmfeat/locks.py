"""One process at a time: an exclusive lock on a file, gone with the process that holds it."""

import fcntl
import os
from pathlib import Path

from itmfeat.errors import DataError


def lock_file(path: Path, flags: int, busy: str | None) -> int:
    """Open a file and lock it; closing the returned descriptor lets go.

    While another process holds it: a DataError that begins with `busy`, or waiting if that is None.
    """
    while True:
        descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            os.close(descriptor)
            raise DataError(f"{busy} right now; wait for it or stop it") from error
        if _is_open_as(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder renamed or removed it after we had opened it


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
