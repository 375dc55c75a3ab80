"""Several stacks at a time on one machine: a fresh process for each, `python -m itmfeat.sweeps.worker`.

A process that dies is started again once; the stack goes on from its last checkpoint. When the command goes,
its processes go with it.
"""

import os
import subprocess
import sys
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait

import torch

from itmfeat.errors import Note
from itmfeat.sweeps.work import Job, Tell, ended

RETRIES = 1  # of a stack whose process died


@dataclass
class _Worker:
    """A process with its stack, the command's end of its pipe, and its place among those at work."""

    process: subprocess.Popen[bytes]
    job: Job
    place: int
    through: bool = False  # whether it said that it is done


class Processes:
    """The executor: at most `workers` stacks at a time, in turns on the `devices`, cores divided."""

    def __init__(self, workers: int, devices: list[str]) -> None:
        self._workers, self._devices = workers, devices
        self._running: dict[Connection, _Worker] = {}
        self._died: Counter[int] = Counter()

    def __call__(self, jobs: list[Job], tell: Tell, note: Note) -> None:
        """Do all jobs; whatever ends this ends the processes."""
        waiting = deque(jobs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._workers:
                    self._start(waiting.popleft())
                for connection in wait(list(self._running)):
                    assert isinstance(connection, Connection)
                    if again := self._hear(connection, tell, note):
                        waiting.appendleft(again)
        finally:
            for connection in list(self._running):
                self._running[connection].process.kill()
                self._dismiss(connection)

    def _start(self, job: Job) -> None:
        place = min(set(range(self._workers)) - {worker.place for worker in self._running.values()})
        threads = max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // self._workers))
        job = replace(job, device=self._devices[place % len(self._devices)], threads=threads)
        here, there = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "itmfeat.sweeps.worker", str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        there.close()
        with suppress(OSError):  # it died at once: reading from it says so
            here.send(job)
        self._running[here] = _Worker(process, job, place)

    def _hear(self, connection: Connection, tell: Tell, note: Note) -> Job | None:
        """Take a message; returns the job if its process died and may try again."""
        worker = self._running[connection]
        try:
            message = connection.recv()
        except (EOFError, OSError):
            code = self._dismiss(connection)
            return None if worker.through else self._lost(worker.job, code, tell)
        if message is None:
            worker.through = True
        elif isinstance(message, str):
            note(message)
        else:
            tell(message)
        return None

    def _lost(self, job: Job, code: int, tell: Tell) -> Job | None:
        how = (
            f"was killed by signal {-code} (9: often for want of memory)"
            if code < 0
            else f"ended with {code}"
        )
        self._died[job.number] += 1
        if self._died[job.number] <= RETRIES:
            tell({"event": "retried", "stack": job.number, "reason": f"its process {how}"})
            return job
        reason = f"its process {how}, {RETRIES + 1} times; repeat the command with a smaller --width"
        for event in ended(job, reason):
            tell(event)
        return None

    def _dismiss(self, connection: Connection) -> int:
        connection.close()
        return self._running.pop(connection).process.wait()
