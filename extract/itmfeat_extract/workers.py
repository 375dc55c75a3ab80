"""Worker processes of one machine: ranges go out, checksums come back.

A worker is a fresh process, `python -m itmfeat_extract.workers`, with a model and a device of its own. It
fills its ranges in place; the command holds the file's lock, logs and seals. A worker that dies is replaced,
and what it was at is done again.
"""

import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Self

from itmfeat.cache.ranges import Slot
from itmfeat.errors import ItmfeatError
from itmfeat_extract.makers import Recipe
from itmfeat_extract.stages import AHEAD, Done, Maker, Task, Times, run

DEPTH = AHEAD + 4  # ranges that a worker has: decoded ahead, two being made, one written, and one more
RETRIES = 2  # of a range whose worker died


@dataclass
class _Worker:
    """A process, the command's end of its pipe, and the ranges that it has."""

    recipe: Recipe
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, Task] = field(default_factory=dict)
    told: bool = False  # that nothing more comes

    def send(self, task: Task | None) -> None:
        """Give it a range, or say that there are no more."""
        if self.told:
            return
        if task is None:
            self.told = True
        else:
            self.tasks[task.slot.index] = task
        with suppress(OSError):  # it died: reading from it says so
            self.connection.send(task)


class Processes:
    """An engine: one worker process for each recipe, whose devices may differ."""

    def __init__(self, recipes: list[Recipe], threads: int) -> None:
        self._recipes, self._threads = recipes, threads

    def __call__(self, tasks: Iterable[Task], maker: Maker, done: Done) -> Times:
        """Have all ranges made; `maker`, that of this process, is not used."""
        with _Crew(self._recipes, self._threads, tasks, done) as crew:
            return crew.work()


class _Crew:
    """The workers of one file, and what is still to be given to them."""

    def __init__(self, recipes: list[Recipe], threads: int, tasks: Iterable[Task], done: Done) -> None:
        self._threads, self._done = threads, done
        self._cores = max(1, (os.cpu_count() or 1) // len(recipes))
        self._source, self._again, self._died = iter(tasks), deque[Task](), Counter[int]()
        self._times = Times()
        self._workers: list[_Worker] = []
        first = list(islice(self._source, len(recipes) * DEPTH))
        self._again.extend(first)
        for recipe in recipes[: len(first)]:  # no more workers than ranges
            self._workers.append(self._start(recipe))

    def work(self) -> Times:
        """Until all ranges are logged."""
        for worker in self._workers * DEPTH:
            worker.send(self._next())
        while self._workers:
            ready = wait([worker.connection for worker in self._workers])
            for worker in [each for each in self._workers if each.connection in ready]:
                self._hear(worker)
        return self._times

    def _next(self) -> Task | None:
        return self._again.popleft() if self._again else next(self._source, None)

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Times):
            self._times += message
            self._dismiss(worker)
            return
        index, sums = message
        self._done(worker.tasks.pop(index).slot, sums)
        worker.send(self._next())

    def _replace(self, worker: _Worker) -> None:
        """What a dead worker was at goes to a new one."""
        code = self._dismiss(worker)
        for index, task in worker.tasks.items():
            self._died[index] += 1
            if self._died[index] > RETRIES:
                raise _lost(task.slot, code)
            self._again.append(task)
        if self._again:
            another = self._start(worker.recipe)
            self._workers.append(another)
            for _ in range(DEPTH):
                another.send(self._next())

    def _dismiss(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        worker.connection.close()
        return worker.process.wait()

    def _start(self, recipe: Recipe) -> _Worker:
        here, there = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "itmfeat_extract.workers", str(there.fileno()), str(self._cores)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )
        there.close()
        here.send((recipe, self._threads))
        return _Worker(recipe, process, here)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in list(self._workers):
            worker.process.kill()
            self._dismiss(worker)


def _lost(slot: Slot, code: int) -> ItmfeatError:
    how = f"was killed by signal {-code} (9: often for want of memory)" if code < 0 else f"ended with {code}"
    return ItmfeatError(
        f"a worker process {how} {RETRIES + 1} times at items {slot.items.start} to {slot.items.stop - 1} of "
        f"{slot.path}; what is done is kept: repeat the command with fewer --workers"
    )


def serve(connection: Connection) -> None:
    """The life of a worker: a recipe, then ranges until None comes."""

    def tasks() -> Iterator[Task]:
        while (task := connection.recv()) is not None:
            yield task

    try:
        recipe, threads = connection.recv()
        maker = recipe.maker()
        times = run(tasks(), maker, threads, lambda slot, sums: connection.send((slot.index, sums)))
        connection.send(times)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the command has gone, and nobody is left to tell
    except Exception as error:
        connection.send(error)


def main() -> None:
    """Take up the pipe that the command left open."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the command ends its workers
    descriptor, cores = map(int, sys.argv[1:])
    torch.set_num_threads(min(cores, torch.get_num_threads()))
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
