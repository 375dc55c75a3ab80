"""Progress and notes on stderr; stdout is for results alone."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def note(text: str) -> None:
    """One line for the person at the screen."""
    print(text, file=sys.stderr, flush=True)


class Meter:
    """A progress bar for each thing that is counted; plain lines now and then where stderr is no screen.

    `count` and `steps` are the callbacks of extraction and training. Use it as a context manager.
    """

    def __init__(self, every: float = 5.0) -> None:
        console = Console(stderr=True)
        self._plain, self._every = not console.is_terminal, every
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=self._plain,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said = 0.0

    def count(self, what: str, done: int, total: int) -> None:
        """`done` of `total` items of something."""
        self._update(what, done, total, "")

    def steps(self, done: int, total: int, line: str) -> None:
        """Training steps, with a line about the last epoch."""
        self._update("train", done, total, line)

    def event(self, event: Mapping[str, Any]) -> None:
        """The steps of each stack of a sweep."""
        if event["event"] == "step":
            self._update(f"stack {event['stack']}", event["done"], event["total"], "")

    def _update(self, what: str, done: int, total: int, line: str) -> None:
        now = time.monotonic()
        if what not in self._began:
            self._began[what] = (now, done)
            self._tasks[what] = self._bars.add_task(what, total=total, speed="", line="")
        start, first = self._began[what]
        rate = (done - first) / max(now - start, 1e-9)
        speed = f"{rate:.0f}/s" if done > first else ""
        self._bars.update(self._tasks[what], completed=done, speed=speed, line=line)
        due = now - self._said >= self._every or done == total
        if self._plain and due:
            self._said = now
            left = f", {(total - done) / rate:.0f} s left" if done > first and done < total else ""
            note(" ".join(part for part in (what, f"{done}/{total}", speed + left, line) if part))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
