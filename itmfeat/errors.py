"""What goes wrong, as one sentence and an exit code.

Every error that a user can cause is one of these. The command line prints the sentence to stderr and
leaves with the code; nothing else in the project prints a traceback on purpose.
"""

from collections.abc import Callable

Note = Callable[[str], None]
"""Told one line that a user should know, where nothing went wrong."""


def silent(text: str) -> None:
    """The note of a caller who wants none."""


OK, FAILED, USAGE, DATA, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class ItmfeatError(Exception):
    """The work could not be finished (exit code 1), for example because a disk is full."""

    exit_code = FAILED


class UsageError(ItmfeatError):
    """The request itself is wrong: an unknown name or key, a value out of range (exit code 2)."""

    exit_code = USAGE


class DataError(ItmfeatError):
    """Data, a cache or a run does not fit what was asked (exit code 3)."""

    exit_code = DATA


class MissingPackageError(ItmfeatError):
    """An optional package is not installed (exit code 4)."""

    exit_code = MISSING


def reason_of(error: BaseException) -> str:
    """The first line of what a library says, or at least what kind of error it is."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def disk_full(error: OSError, place: object, then: str) -> ItmfeatError | None:
    """What to say if `error` means that the disk of `place` (or a quota) is full; None for others."""
    import errno

    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return ItmfeatError(f"the disk of {place} is full; make room and repeat the command{then}")


def unknown(kind: str, name: str, known: "list[str]") -> UsageError:
    """A `UsageError` that names the nearest known spelling, if there is one, and the whole list."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")
