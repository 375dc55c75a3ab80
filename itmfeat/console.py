"""Progress and notes on stderr; stdout is for results alone."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
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


class Board:
    """A sweep on stderr: a bar for each stack, and the validation rSum of each setting as it stands.

    `tell` takes the events. Where stderr is no screen, each epoch of a stack is a line. Use it as a context
    manager.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
        )
        self._tasks: dict[int, TaskID] = {}
        self._clock: dict[int, tuple[float, int]] = {}  # when a stack told of its first step, and which
        self._left: dict[int, float] = {}  # seconds
        self._rsums: dict[str, float] = {}  # of the settings of stacks that train
        self._runs: dict[int, list[str]] = {}
        self._shared = 0  # characters that all names begin with
        self._ended: dict[str, str] = {}  # run -> how
        self._settings = 0
        self._nets: dict[int, int] = {}  # of the stacks
        self._began = time.monotonic()
        self._before: dict[int, float] = {}  # how much of each stack an earlier attempt trained
        self._parts: dict[int, float] = {}  # how much of it is trained now
        self._console = console
        self._live = Live(console=console, get_renderable=self._shown)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take an event of a sweep."""
        match event["event"]:
            case "planned":
                self._settings = event["settings"]
                self._ended = dict.fromkeys(event["finished"], "finished")
                self._began, self._before, self._parts = time.monotonic(), {}, {}
                self._nets = {stack["stack"]: stack["nets"] for stack in event["stacks"]}
                names = [name for stack in event["stacks"] for name in stack["settings"]]
                self._shared = os.path.commonprefix(names).rfind("-") + 1  # noqa: RUF071 - names, no paths
                self._clear()
            case "started":
                self._start(event["stack"], event["runs"])
            case "step":
                self._step(event["stack"], event["done"], event["total"])
            case "epoch":
                self._epoch(event)
            case "finished" | "diverged" | "failed":
                self._end(event)
            case "retried":
                note(f"stack {event['stack']} starts again: {event['reason']}")

    def _clear(self) -> None:
        """A search plans again and again, and numbers its stacks anew."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._rsums.clear()

    def _start(self, stack: int, runs: list[str]) -> None:
        self._runs[stack] = runs
        self._clock.pop(stack, None)
        if stack not in self._tasks:
            self._tasks[stack] = self._bars.add_task(f"stack {stack}", total=None, line="")

    def _step(self, stack: int, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = self._clock.setdefault(stack, (now, done))
        if done > first:
            self._left[stack] = (total - done) * (now - start) / (done - first)
        self._parts[stack] = done / total
        self._before.setdefault(stack, self._parts[stack])
        self._bars.update(self._tasks[stack], completed=done, total=total)

    def _epoch(self, event: Mapping[str, Any]) -> None:
        self._rsums |= event["val_rsum"]
        line = f"epoch {event['epoch']}/{event['epochs']}"
        self._bars.update(self._tasks[event["stack"]], line=line)
        if self._plain:
            left = self._left.get(event["stack"]) if event["epoch"] < event["epochs"] else None
            clock = f", {left:.0f} s left" if left else ""
            scores = ", ".join(f"{self._short(name)} {rsum:.1f}" for name, rsum in event["val_rsum"].items())
            note(f"stack {event['stack']}: {line}{clock}, val rSum {scores}")

    def _end(self, event: Mapping[str, Any]) -> None:
        self._ended[event["run"]] = event["event"]
        self._rsums.pop(event["run"], None)
        stack = event.get("stack")
        if stack in self._tasks and event["run"] in self._runs[stack]:
            self._bars.update(self._tasks[stack], line=event["event"])
        if event["event"] != "finished":
            reason = event.get("reason") or "the loss is no number any more"
            note(f"{event['run']} {event['event']}: {reason}")

    def _time_left(self) -> float:
        """Seconds for all stacks, by what their nets took so far; 0 where that is not known yet."""
        nets = {stack: self._nets.get(stack, 0) for stack in self._parts}
        new = sum(nets[stack] * (part - self._before[stack]) for stack, part in self._parts.items())
        left = sum(self._nets.values()) - sum(nets[stack] * part for stack, part in self._parts.items())
        return (time.monotonic() - self._began) * left / new if new > 0 else 0

    def _short(self, name: str) -> str:
        return name[self._shared :]

    def _shown(self) -> RenderableType:
        ended = {"finished": 0} | Counter(self._ended.values())
        counts = f"{self._settings} settings: " + ", ".join(f"{n} {kind}" for kind, n in ended.items())
        if left := self._time_left():
            counts += f", about {timedelta(seconds=round(left))} left"
        scores = [f"{self._short(name)} {rsum:.1f}" for name, rsum in self._rsums.items()]
        rows = max(1, self._console.height - len(self._tasks) - 4)
        columns = max(1, self._console.width // (max(map(len, scores), default=0) + 1))
        room = rows * columns
        more = [f"and {len(scores) - room} more"] if len(scores) > room else []
        return Group(self._bars, counts, Columns([*scores[:room], *more]))

    def __enter__(self) -> Self:
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._plain:
            self._live.stop()
