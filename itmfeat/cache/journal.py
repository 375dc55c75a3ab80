"""The journal beside an unfinished feature file: which ranges are on disk, with their checksums.

One JSON object a line, appended in one write each. The first line
names the extraction (`identity`); the others are `{"range": 17, "sums": {"features": "<hex>", ...}}`. A line
torn by a kill is ignored: its range is done again. The journal also carries the lock of the extraction.
"""

import json
import os
from pathlib import Path

from itmfeat.locks import lock_file

Sums = dict[str, str]
"""Payload name -> hexadecimal checksum of one range."""


class Journal:
    """Opened and locked for the life of one extraction of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        busy = f"another extraction is writing {path.with_suffix('')}"
        self._descriptor = lock_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, busy)

    def read(self) -> tuple[str | None, dict[int, Sums]]:
        """The identity (None in a new journal) and the finished ranges."""
        identity, done = None, {}
        for line in self.path.read_text().split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # empty or torn by a kill
            if "identity" in entry:
                identity = str(entry["identity"])
            else:
                done[int(entry["range"])] = dict(entry["sums"])
        return identity, done

    def begin(self, identity: str) -> None:
        """Start afresh with the identity of the extraction."""
        os.ftruncate(self._descriptor, 0)
        self._append({"identity": identity})

    def finish_range(self, index: int, sums: Sums) -> None:
        """Log that all bytes of a range are written."""
        self._append({"range": index, "sums": sums})

    def _append(self, entry: dict[str, object]) -> None:
        # The newline in front closes a line that a kill may have torn.
        os.write(self._descriptor, f"\n{json.dumps(entry)}\n".encode())

    def close(self) -> None:
        """Release the lock and keep the journal for the next start."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """The extraction is complete."""
        self.path.unlink(missing_ok=True)
        self.close()
