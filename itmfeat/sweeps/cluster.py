"""Many machines: each stack is a task of a Ray cluster.

All machines must see the caches and the run folders under the same paths. When a machine dies Ray gives its
stacks to others, which go on from the last checkpoint in the run folders.
"""

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from itmfeat.errors import DataError, ItmfeatError, Note, reason_of
from itmfeat.ray_connection import connection
from itmfeat.runs import Run
from itmfeat.sweeps.work import Epochs, Event, Job, Tell, do, ended

RETRIES = 5  # of a stack that died with its process or machine
LOOK = 2.0  # seconds between two looks into the run folders
PATIENCE = 120.0  # seconds until the runs of a lost machine are free: it may not know yet that it is lost


@dataclass(frozen=True)
class Share:
    """What a stack takes of a cluster, and how many find room at once."""

    cpus: int
    gpus: float
    at_once: int
    memory: int | None  # bytes for a stack; None where it is a GPU's, which the cluster does not tell

    @classmethod
    def of(cls, ray: Any, device: str, gpus: float | None, workers: int | None) -> "Share":
        """By default a stack takes a GPU, or where there are none the cores of a machine."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
        if not nodes:
            raise ItmfeatError("the Ray cluster has no CPUs to give; add machines with `ray start`")
        if device != "cpu" and any(node.get("GPU", 0) for node in nodes):
            return cls._of_gpus([node.get("GPU", 0) for node in nodes], gpus or 1, workers)
        if device.startswith("cuda") or (gpus and device == "auto"):
            raise ItmfeatError(
                "the Ray cluster has no GPU; add machines with `ray start`, or take --device cpu"
            )
        at_once = workers or len(nodes)
        each = -(-at_once // len(nodes))  # stacks of a machine
        cores = min(int(node["CPU"]) for node in nodes)
        memory = min(int(node.get("memory", 1 << 62)) for node in nodes)
        return cls(max(1, cores // each), 0, at_once, memory // each)

    @classmethod
    def _of_gpus(cls, machines: list[float], gpus: float, workers: int | None) -> "Share":
        """A stack never takes GPUs of two machines."""
        at_once = sum(int(there / gpus) for there in machines)
        if not at_once:
            raise ItmfeatError(
                f"no machine of the Ray cluster has {gpus:g} GPUs for a stack; take --gpus {max(machines):g} "
                "or less"
            )
        return cls(1, gpus, min(workers or at_once, at_once), None)


class Cluster:
    """The executor: all stacks are handed to Ray, and their run folders are looked at meanwhile."""

    def __init__(self, address: str | None, share: Share) -> None:
        self._address, self._share = address, share

    def __call__(self, jobs: list[Job], tell: Tell, note: Note) -> None:
        """Do all jobs; whatever ends this cancels the tasks."""
        with connection(self._address) as ray:
            self._work(ray, jobs, tell, note)

    def _work(self, ray: Any, jobs: list[Job], tell: Tell, note: Note) -> None:
        share = self._share
        remote = ray.remote(max_retries=RETRIES, num_cpus=share.cpus, num_gpus=share.gpus)(train)
        waiting = [self._placed(job) for job in reversed(jobs)]
        running: dict[Any, _Watched] = {}
        try:
            while waiting or running:
                while waiting and len(running) < share.at_once:
                    job = waiting.pop()
                    running[remote.remote(job, os.getcwd())] = _Watched(job, tell)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
                for watched in running.values():
                    watched.look()
                for reference in ready:
                    for event in _result(ray, reference, running.pop(reference).job):
                        if event["event"] == "note":
                            note(event["text"])
                        else:
                            tell(event)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _placed(self, job: Job) -> Job:
        """Tasks run in folders of their own, on the device that Ray gives them."""
        device = "cpu" if not self._share.gpus else "cuda"
        cache, runs = job.cache.absolute(), job.runs.absolute()
        return replace(job, cache=cache, runs=runs, device=device, threads=self._share.cpus)


def _result(ray: Any, reference: Any, job: Job) -> list[Event]:
    """What the task of a stack returned, else that its settings failed."""
    try:
        found: list[Event] = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = reason_of(error)
        return ended(job, f"Ray gave it up ({reason}); repeat the command")
    return found


class _Watched:
    """A stack that trains elsewhere, as its run folders show."""

    def __init__(self, job: Job, tell: Tell) -> None:
        self.job, self._tell = job, tell
        self._configs = job.open()
        self._epochs = Epochs(job, self._configs, tell)
        tell({"event": "started", "stack": job.number, "runs": [config.name for config in self._configs]})

    def look(self) -> None:
        """Tell of a new epoch, and count epochs as steps: these are not logged."""
        if self._configs:
            self._epochs.look()
            done, total = self._epochs.told, self._configs[0].schedule.epochs
            self._tell({"event": "step", "stack": self.job.number, "done": done, "total": total})


def train(job: Job, folder: str) -> list[Event]:
    """The task: a stack; returns its notes, as events, and how its settings ended.

    `folder` is where the command was given.
    """
    with suppress(FileNotFoundError):
        os.chdir(folder)  # a noise file may be named from there
    if not job.cache.is_dir():
        return ended(
            job, f"{socket.gethostname()} does not see {job.cache}: all machines must, under one path"
        )
    began = time.monotonic()
    while not all(_is_free(job.run(config)) for config in job.open()) and time.monotonic() - began < PATIENCE:
        time.sleep(0.5)
    sys.argv = job.argv  # manifests tell of the command that the user gave
    events: list[Event] = []
    do(job, events.append, lambda text: events.append({"event": "note", "text": text}))
    return [event for event in events if event["event"] in ("note", "finished", "diverged", "failed")]


def _is_free(run: Run) -> bool:
    """Whether no process is training it."""
    try:
        os.close(run.lock())
    except FileNotFoundError:  # nobody has begun
        return True
    except DataError:
        return False
    return True
