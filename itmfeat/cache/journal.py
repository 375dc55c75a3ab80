"""The journal beside an unfinished feature file: which ranges are on disk, with their checksums.

One JSON object a line. The first names the extraction (`identity`) and says what it is (`attributes`, those
of the file); the others are `{"range": 17, "sums": {"features": "<hex>", ...}}`. A line torn by a kill is
ignored: its range is done again. The journal also carries the lock of the extraction.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itmfeat.errors import DataError, disk_full
from itmfeat.locks import lock_file

Sums = dict[str, str]
"""Payload name -> hexadecimal checksum of one range."""


@dataclass
class Entries:
    """What a journal says."""

    identity: str | None = None  # None in a new journal
    attributes: dict[str, Any] = field(default_factory=dict)
    done: dict[int, Sums] = field(default_factory=dict)  # range -> its checksums


class Journal:
    """Opened and locked for the life of one extraction of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        busy = f"another extraction is writing {path.with_suffix('')}"
        self._descriptor = lock_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, busy)

    def read(self) -> Entries:
        """All whole lines."""
        return read_entries(self.path)

    def begin(self, identity: str, attributes: dict[str, Any]) -> None:
        """Start afresh with the identity of the extraction."""
        os.ftruncate(self._descriptor, 0)
        self._append({"identity": identity, "attributes": attributes})

    def finish_range(self, index: int, sums: Sums) -> None:
        """Log that all bytes of a range are written."""
        self._append({"range": index, "sums": sums})

    def _append(self, entry: dict[str, object]) -> None:
        append(self._descriptor, self.path, entry)

    def close(self) -> None:
        """Release the lock and keep the journal for the next start."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """The extraction is complete."""
        self.path.unlink(missing_ok=True)
        self.close()


def read_entries(path: Path) -> Entries:
    """All whole lines of a journal; nothing of one that does not exist."""
    found = Entries()
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # empty or torn by a kill
        match entry:
            case {"identity": str(identity), "attributes": dict(attributes)}:
                found.identity, found.attributes = identity, attributes
            case {"identity": str(identity)}:
                found.identity = identity
            case {"range": int(index), "sums": dict(sums)}:
                found.done[index] = sums
    return found


def append(descriptor: int, path: Path, entry: dict[str, object]) -> None:
    """Add a line to a journal that is open for appending."""
    # The newline in front closes a line that a kill may have torn.
    line = f"\n{json.dumps(entry)}\n".encode()
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError as error:
        raise disk_full(error, path, ", it goes on from here") or error from None


def journal_of(path: Path) -> Path:
    """Where the journal of a feature file lies."""
    return path.with_name(path.name + ".journal")


def clear_finished(path: Path) -> None:
    """Remove the journal of a finished file, if a kill came between the rename and its end."""
    if journal_of(path).exists():
        with suppress(DataError):  # a living process is at it
            Journal(journal_of(path)).remove()


def mismatch(key: str, there: dict[str, Any], asked: dict[str, Any]) -> str:
    """In which an attribute of a file differs from what is asked; of a fingerprint its first such entry."""
    if key != "fingerprint":
        return f"another {key} ({there.get(key)}, not {asked[key]})"
    old, new = (dict(json.loads(source.get(key, "{}"))) for source in (there, asked))
    part = next((name for name in sorted(old | new) if old.get(name) != new.get(name)), None)
    if part is None:  # the same in other words
        return "another fingerprint"
    then, now = (str(source.get(part))[:40] for source in (old, new))
    return f"another fingerprint ({part}: {then}, not {now})"


def difference(begun: dict[str, Any], asked: dict[str, Any]) -> str:
    """How an unfinished extraction differs from what is asked, and what to do: the end of a sentence.

    Both are attributes of the file. Other library versions are refused as well: they may give other values,
    and the file names one version of each.
    """
    others = [key for key in asked if key != "versions" and begun.get(key) != asked[key]]
    then, now = (dict(json.loads(source.get("versions", "{}"))) for source in (begun, asked))
    changed = sorted(name for name in then | now if then.get(name) != now.get(name))
    if others or not changed:
        which = f": {mismatch(others[0], begun, asked)}" if begun and others else ""
        return f"was begun with other settings{which}; repeat it with those, or delete it to start over"
    old, new = (", ".join(f"{name} {source.get(name)}" for name in changed) for source in (then, now))
    return (
        f"was begun with {old}, where now {new} may give other values; "
        f"install {old} again to go on, or delete it to start over"
    )
