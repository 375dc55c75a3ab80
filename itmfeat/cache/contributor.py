"""Several processes that extract one file together without a word between them: torchrun, or Slurm.

One of them, the first rank, is the `FeatureWriter`: it holds the lock, lays the file out and finishes it. The
others contribute ranges: they wait for the layout, fill ranges in place and log them in the same journal. No
lock tells them when to begin. The writer logs its identity before the file appears under its name, so a
journal with the right identity beside an unfinished file is enough: whatever they fill then has the bytes
that belong there, even if the writer is at its start, is about to resume, or has gone.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from itmfeat.cache.journal import Sums, append, journal_of, read_entries
from itmfeat.cache.ranges import Slot
from itmfeat.cache.reader import holds
from itmfeat.cache.schema import offsets_of
from itmfeat.cache.writer import FeatureSpec, layout, part_of, slot_of
from itmfeat.errors import ItmfeatError

POLL = 0.2  # seconds


class Contributor:
    """The ranges `rank`, `rank + world`, ... of a file that another process lays out and finishes.

    It has what `FeatureWriter` has: `pending`, `slot`, `log`, `finish`. `patience` is how many seconds the
    writer may give no sign of life.
    """

    def __init__(self, path: Path, spec: FeatureSpec, rank: int, world: int, patience: float) -> None:
        self.path, self.spec, self.part = path, spec, part_of(path)
        self.offsets = offsets_of(spec.lengths)
        self._patience, self._descriptor = patience, -1
        self.finished = self._wait(self._laid_out)  # by others, before anything was left to do
        self.pending: list[int] = []
        if not self.finished:
            self._extents, _, _ = layout(self.part)
            done = read_entries(journal_of(path)).done
            self.pending = [index for index in range(rank, spec.ranges, world) if index not in done]
            with suppress(FileNotFoundError):  # finished in this moment: then a line is not needed
                self._descriptor = os.open(journal_of(path), os.O_WRONLY | os.O_APPEND)

    def items(self, index: int) -> range:
        """The items of a range."""
        return self.spec.items(index)

    def slot(self, index: int) -> Slot:
        """Where the bytes of a range belong."""
        return slot_of(self.path, self.spec, self.offsets, self._extents, index)

    def log(self, index: int, sums: Sums) -> None:
        """Note that all bytes of a range are written, and their checksums."""
        if self._descriptor >= 0:
            append(self._descriptor, self.path, {"range": index, "sums": sums})

    def finish(self) -> Path:
        """Wait until the file is complete."""
        self._wait(lambda: None)
        return self.path

    def _laid_out(self) -> bool | None:
        entries = read_entries(journal_of(self.path))
        return False if entries.identity == self.spec.identity() and self.part.exists() else None

    def _wait(self, ready: Callable[[], bool | None]) -> bool:
        """True when the file is finished, or what `ready` says if that comes first."""
        last, seen = time.monotonic(), -1
        while True:
            if holds(self.path, self.spec):
                return True
            if (found := ready()) is not None:
                return found
            grown = _size(journal_of(self.path))
            if grown != seen:
                last, seen = time.monotonic(), grown
            if time.monotonic() - last > self._patience:
                raise ItmfeatError(
                    f"the first rank has not gone on with {self.path} for {self._patience:.0f} s; "
                    "repeat the command, it goes on from here"
                )
            time.sleep(POLL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
