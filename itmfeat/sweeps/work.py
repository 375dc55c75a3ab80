"""A stack at work: the call that every executor makes, in this process or another."""

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mode
from typing import Any

import torch

from itmfeat.config import RunConfig
from itmfeat.errors import ItmfeatError, Note, reason_of, silent
from itmfeat.runs import Run
from itmfeat.sweeps.plan import state
from itmfeat.training import train_stack

EVERY = 0.2  # seconds between two events about steps

Event = dict[str, Any]
Tell = Callable[[Event], None]
"""Told what happens: dictionaries with an "event" and, of stacks, their number."""


@dataclass(frozen=True)
class Job:
    """A stack to be trained, with all that a worker needs to know; it goes to other processes."""

    number: int  # of the stack, from 1
    configs: list[RunConfig]
    cache: Path
    runs: Path
    device: str = "auto"
    resident: str = "auto"
    verify: bool = False
    threads: int | None = None  # of torch; None leaves them alone
    argv: list[str] = field(default_factory=lambda: list(sys.argv))  # of the command, for the manifests

    def open(self) -> list[RunConfig]:
        """Those that are still to be trained."""
        return [config for config in self.configs if state(self.run(config)) == "open"]

    def run(self, config: RunConfig) -> Run:
        """The folder of one of them."""
        return Run(self.runs / config.name)


def do(job: Job, tell: Tell, note: Note = silent) -> None:
    """Train what is left of a stack, and tell how it goes and how each setting ended.

    Errors of users, files and devices are told as "failed", so that other stacks go on.
    """

    def told(text: str) -> None:
        note(f"stack {job.number}: {text}")

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    configs = job.open()
    tell({"event": "started", "stack": job.number, "runs": [config.name for config in configs]})
    reason = _train(job, configs, tell, told) if configs else ""
    for event in ended(job, reason):
        tell(event)


def _train(job: Job, configs: list[RunConfig], tell: Tell, note: Note) -> str:
    """Why not all of them are finished; empty if they are. Where the GPU's memory is short: in halves."""
    watch = Epochs(job, configs, tell)
    try:
        train_stack(
            configs,
            job.cache,
            job.runs,
            job.device,
            watch.step,
            resident=job.resident,
            verify=job.verify,
            note=note,
        )
    except torch.OutOfMemoryError:
        if len(configs) == 1:
            return "the memory of the GPU is too small; try a smaller --batch-size"
    except ItmfeatError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror or reason_of(error)}{f' ({error.filename})' if error.filename else ''}"
    except RuntimeError as error:
        return f"{type(error).__name__}: {reason_of(error)}"
    else:
        return ""
    finally:
        watch.look()
    # Only here: inside `except` the traceback would keep the failed trainer on the GPU.
    note("it does not fit into the GPU's memory, its halves follow each other")
    gc.collect()
    torch.cuda.empty_cache()
    middle = len(configs) // 2
    reasons = [_train(job, part, tell, note) for part in (configs[:middle], configs[middle:])]
    return " ".join(filter(None, reasons))


class Epochs:
    """Tells of steps, and of the validation rSum of each setting when its epoch is logged."""

    def __init__(self, job: Job, configs: list[RunConfig], tell: Tell) -> None:
        self._job, self._configs, self._tell = job, configs, tell
        self._line, self._said = "", 0.0
        self._lengths = {config.name: 0 for config in configs}  # of the logs, in epochs
        self.told = 0  # epochs

    def step(self, done: int, total: int, line: str) -> None:
        """The progress callback of training; `line` changes when an epoch is over."""
        if line != self._line:
            self._line = line
            self.look()
        now = time.monotonic()
        if now - self._said > EVERY or done == total:
            self._said = now
            self._tell({"event": "step", "stack": self._job.number, "done": done, "total": total})

    def look(self) -> None:
        """Read what the run folders have logged since the last time."""
        logs = {config.name: self._job.run(config).metrics() for config in self._configs}
        longer = [len(log) for name, log in logs.items() if len(log) > self._lengths[name]]
        if not longer:
            return
        self._lengths = {name: len(log) for name, log in logs.items()}
        self.told = mode(longer)  # another process may be elsewhere with a setting of its own
        self._tell(
            {
                "event": "epoch",
                "stack": self._job.number,
                "epoch": self.told,
                "epochs": self._configs[0].schedule.epochs,
                "val_rsum": {name: log[-1]["val"]["rsum"] for name, log in logs.items() if log},
            }
        )


def ended(job: Job, reason: str = "") -> list[Event]:
    """How each setting of a stack ended, as its folder shows."""
    events = []
    for config in job.configs:
        run = job.run(config)
        event: Event = {"stack": job.number, "run": config.name}
        match state(run):
            case "finished":
                selected = run.read("manifest.json")["selection"]
                scores = {"val_rsum": selected["rsum"], "epoch": selected["epoch"]}
                events.append({"event": "finished", **event, **scores})
            case "diverged":
                epoch = run.read("manifest.json")["diverged"]
                events.append({"event": "diverged", **event, "epoch": epoch})
            case _:
                events.append({"event": "failed", **event, "reason": reason or "it was not trained"})
    return events
