"""A sweep from its specification to its run folders."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from itmfeat import residency
from itmfeat.errors import ItmfeatError, Note, UsageError, silent, unknown
from itmfeat.ray_connection import connection
from itmfeat.runs import make_place
from itmfeat.sweeps.cluster import Cluster, Share
from itmfeat.sweeps.expand import Setting, settings
from itmfeat.sweeps.memory import free_on
from itmfeat.sweeps.plan import WIDEST, WIDEST_ON_GPU, Plan, described, make_plan
from itmfeat.sweeps.processes import Processes
from itmfeat.sweeps.search import Best, Search
from itmfeat.sweeps.spec import Spec, read_spec
from itmfeat.sweeps.work import Event, Job, Tell, do
from itmfeat.training import choose_device

ENGINES = ("local", "ray")

Executor = Callable[[list[Job], Tell, Note], None]
"""Does all jobs and tells of them; its return means that nothing more will happen."""


@dataclass(frozen=True)
class Site:
    """Where and how the stacks of a sweep train."""

    device: str = "auto"
    resident: str = "auto"
    verify: bool = False
    width: int | None = None  # nets of a stack at most; None: by memory, up to `widest`
    workers: int | None = None  # stacks at the same time; None: one here, on a cluster what finds room
    engine: str = "local"
    address: str | None = None  # of a Ray cluster
    gpus: float | None = None  # that a stack takes of a cluster
    stack: tuple[int, int] | None = None  # only this one, of so many

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, list(ENGINES))
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")
        if self.gpus is not None and not 0 < self.gpus <= 64:
            raise UsageError(f"--gpus is the share of a stack, as in 0.5, not {self.gpus:g}")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(f"--gpus is a part of one GPU, or whole GPUs, not {self.gpus:g}")
        if self.engine == "local" and (self.address or self.gpus):
            raise UsageError("--address and --gpus go with --engine ray")
        residency.checked(self.resident)

    @cached_property
    def share(self) -> Share:
        """What a stack takes of a Ray cluster."""
        with connection(self.address) as ray:
            return Share.of(ray, self.device, self.gpus, self.workers)

    @property
    def at_once(self) -> int:
        """Stacks that train at the same time."""
        return self.share.at_once if self.engine == "ray" else self.workers or 1

    @property
    def devices(self) -> list[str]:
        """What processes take in turns: all GPUs, unless one is named."""
        gpus = torch.cuda.device_count() if self.device in ("auto", "cuda") else 0
        return [f"cuda:{place}" for place in range(gpus)] or [self.device]

    @property
    def room(self) -> int | None:
        """Bytes for each stack, where that is known."""
        if self.engine == "ray":
            return self.share.memory
        return free_on(choose_device(self.device)) // -(-self.at_once // len(self.devices))

    @property
    def widest(self) -> int:
        """Nets of a stack that pay where it trains."""
        on_gpu = self.share.gpus if self.engine == "ray" else choose_device(self.device).type == "cuda"
        return WIDEST_ON_GPU if on_gpu else WIDEST

    def executor(self) -> Executor:
        """What trains the stacks."""
        if self.engine == "ray":
            return Cluster(self.address, self.share)
        return here if self.at_once == 1 else Processes(self.at_once, self.devices)

    def jobs(self, plan: Plan) -> list[Job]:
        """The stacks of a plan as executors take them."""
        return [
            Job(
                stack.number,
                [setting.config for setting in stack.settings],
                stack.cache,
                plan.runs,
                self.device,
                self.resident,
                self.verify,
            )
            for stack in plan.stacks
        ]


def plan_sweep(
    spec: str | Path | None = None,
    *,
    runs: str | Path | None = None,
    yes: bool = False,
    site: Site | None = None,
    everything: bool = False,
    **grid: Any,
) -> Plan:
    """What `sweep` would train, without touching anything; the parameters are the same.

    `everything` is that of `make_plan`.
    """
    asked = asked_for(spec, runs, grid)
    if any(part.ranges for part in asked.grids):
        place = next(value.place for part in asked.grids for value in part.ranges.values())
        raise UsageError(f"{place}: ranges are for a search, --search optuna; list values for a grid")
    return _planned(settings(asked, yes=yes), asked.runs, site or Site(), everything)


def asked_for(spec: str | Path | None, runs: str | Path | None, grid: Mapping[str, Any]) -> Spec:
    """A specification from a file, keywords, or both."""
    return read_spec(None if spec is None else Path(spec), grid, None if runs is None else Path(runs))


def _planned(made: list[Setting], runs: Path, site: Site, everything: bool = False) -> Plan:
    plan = make_plan(
        made,
        runs,
        site.room,
        width=site.width,
        widest=site.widest,
        workers=site.at_once,
        everything=everything,
    )
    return plan if site.stack is None else plan.only(*site.stack)


def here(jobs: list[Job], tell: Tell, note: Note) -> None:
    """The executor that needs nothing: one stack after another in this process."""
    for job in jobs:
        do(job, tell, note)


@dataclass
class Tally:
    """How the settings ended, kept beside what else is told."""

    tell: Tell
    ended: dict[str, Event] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """Keep how a setting ended, and pass on everything."""
        if event["event"] in ("finished", "diverged", "failed"):
            self.ended[event["run"]] = event
        self.tell(event)

    def count(self) -> dict[str, int]:
        """Settings by how they ended."""
        found = Counter(event["event"] for event in self.ended.values())
        return {kind: found[kind] for kind in ("finished", "diverged", "failed")}

    def error(self, runs: Path) -> ItmfeatError | None:
        """One sentence that names what has no result."""
        diverged = [name for name, event in self.ended.items() if event["event"] == "diverged"]
        failed = [name for name, event in self.ended.items() if event["event"] == "failed"]
        parts = []
        if diverged:
            parts.append(
                f"{_named(diverged)} diverged: the loss is no number any more; try a lower learning rate"
            )
        if failed:
            parts.append(f"{_named(failed)} failed: {self.ended[failed[0]]['reason']}")
        return ItmfeatError(f"{'; '.join(parts)} (in {runs})") if parts else None


def _named(names: list[str]) -> str:
    first, more = names[0], len(names) - 1
    return first if not more else f"{first} and {more} more"


def run_plan(
    plan: Plan, site: Site | None = None, tell: Tell = lambda event: None, note: Note = silent
) -> list[Path]:
    """Train a plan; returns the folders of all its settings in the order of the grids.

    An ItmfeatError names the settings that diverged or failed, after all others are finished.
    """
    if error := _train(plan, site or Site(), tell, note).error(plan.runs):
        raise error
    return plan.folders()


def check(plan: Plan, site: Site) -> None:
    """An error where nothing of a plan could begin: its folder cannot be made, or its features not held."""
    if not plan.stacks:
        return
    if site.engine == "local":
        residency.checked(site.resident, choose_device(site.device))
    make_place(plan.runs)


def _train(plan: Plan, site: Site, tell: Tell, note: Note) -> Tally:
    """Train a plan, whatever becomes of its settings."""
    began = time.monotonic()
    tally = Tally(tell)
    check(plan, site)
    tell({"event": "planned", **described(plan)})
    stacked = {name for stack in plan.stacks for name in stack.names}  # their stacks tell of these
    for name in plan.diverged:
        if name not in stacked:
            tally({"event": "diverged", "run": name, "epoch": None})
    site.executor()(site.jobs(plan), tally, note)
    tell({"event": "done", **tally.count(), "seconds": round(time.monotonic() - began, 1)})
    return tally


def search(
    spec: str | Path | None = None,
    *,
    trials: int,
    search_seed: int = 0,
    runs: str | Path | None = None,
    site: Site | None = None,
    tell: Tell = lambda event: None,
    note: Note = silent,
    **grid: Any,
) -> Best:
    """Search ranges for the best validation rSum, with Optuna; `spec` and `grid` are those of `sweep`.

    A range is `{"low": 0.05, "high": 0.5, "log": True}` or `{"choices": [...]}` in the place of values.
    """
    where = site or Site()
    wanted = Search(asked_for(spec, runs, grid), search_seed)

    def answer(asked: list[Setting]) -> None:
        tally = _train(_planned(asked, wanted.runs, where), where, tell, note)
        if tally.count()["failed"] and (error := tally.error(wanted.runs)):
            raise error

    return wanted.run(trials, answer, tell)


def sweep(
    spec: str | Path | None = None,
    *,
    runs: str | Path | None = None,
    yes: bool = False,
    device: str = "auto",
    resident: str = "auto",
    verify: bool = False,
    width: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    gpus: float | None = None,
    tell: Tell = lambda event: None,
    note: Note = silent,
    **grid: Any,
) -> list[Path]:
    """Train a table of runs, as many side by side as fit, and return their folders.

    `spec` is a YAML file; `grid` holds the same keys, each one value or several, and takes the place of what
    the file says: `sweep(loss=["triplet", "snll+ncr"], noise=[0, 0.4], seed=range(3), cache="caches/x")`, or
    `**{"loss.margin": [0.1, 0.2]}`. Finished runs are kept, unfinished ones go on. `tell` gets the events of
    `itmfeat sweep --json`, and "step" besides.
    """
    site = Site(device, resident, verify, width, workers, engine, address, gpus)
    return run_plan(plan_sweep(spec, runs=runs, yes=yes, site=site, **grid), site, tell, note)
