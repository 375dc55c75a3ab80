"""One process at a time: an exclusive lock on a file, gone with the process that holds it."""

import fcntl
import os
from pathlib import Path

from itmfeat.errors import DataError


def lock_file(path: Path, flags: int, busy: str) -> int:
    """Open a file and lock it; closing the returned descriptor lets go. A DataError `busy` if it is held."""
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(f"{busy} right now; wait for it or stop it") from error
    return descriptor
