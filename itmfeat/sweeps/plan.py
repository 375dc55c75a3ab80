"""The plan of a sweep: which settings train side by side, and what that takes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from itmfeat.errors import ItmfeatError, UsageError
from itmfeat.runs import Run
from itmfeat.sweeps.expand import Setting
from itmfeat.sweeps.memory import features_bytes, free_on, nets, run_bytes

WIDEST = 32  # nets: wider stacks gain little more, and a checkpoint comes later


@dataclass(frozen=True)
class Stack:
    """Settings that train side by side."""

    settings: list[Setting]
    bytes: int  # estimate of what it takes at its peak, features among them

    @property
    def cache(self) -> Path:
        """The one that all of them train on."""
        return self.settings[0].cache

    @property
    def nets(self) -> int:
        """Of all settings."""
        return sum(nets(setting.config) for setting in self.settings)

    @property
    def names(self) -> list[str]:
        """Of the run folders."""
        return [setting.config.name for setting in self.settings]


@dataclass(frozen=True)
class Plan:
    """All settings of a sweep, and the stacks of those that are still to be trained."""

    settings: list[Setting]
    stacks: list[Stack]
    runs: Path
    finished: list[str]  # names of settings that need nothing more
    diverged: list[str]  # names of settings that ended without a result in an earlier attempt
    free: int  # bytes that stacks may take, all together

    def folders(self) -> list[Path]:
        """The run folders of all settings, in the order of the grids."""
        return [self.runs / setting.config.name for setting in self.settings]


def state(run: Run) -> str:
    """ "finished", "diverged" or "open"."""
    if run.finished:
        return "finished"
    manifest = run.path / "manifest.json"
    return "diverged" if manifest.exists() and run.read("manifest.json").get("diverged") else "open"


def make_plan(
    settings: list[Setting],
    runs: Path,
    device: torch.device,
    *,
    width: int | None = None,
    at_once: int = 1,
    everything: bool = False,
) -> Plan:
    """Form stacks of at most `width` nets, of which `at_once` train at the same time.

    Settings that cannot be stacked are kept apart, and so are those that go on from different epochs. The
    memory of the device bounds the width, and 32 nets if none is given. With `everything` finished settings
    are planned like others, so that the stacks depend on the settings and `width` alone.
    """
    if width is not None and width < 1:
        raise UsageError(f"--width must be at least 1, not {width}")
    states = {setting.config.name: state(Run(runs / setting.config.name)) for setting in settings}
    left = [s for s in settings if everything or states[s.config.name] == "open"]
    free = free_on(device)
    share = -(-sum(nets(setting.config) for setting in left) // at_once)
    widest = width or max(1, min(WIDEST, share))
    stacks = []
    epochs = {s.config.name: set[int]() if everything else _checkpoints(runs, s) for s in left}
    for group in _alike(left, epochs):
        room = None if everything else free // at_once - features_bytes(group[0])
        stacks += _cut(sorted(group, key=_place), widest, room)
    finished = [name for name, found in states.items() if found == "finished"]
    diverged = [name for name, found in states.items() if found == "diverged"]
    return Plan(settings, stacks, runs, finished, diverged, free)


def _checkpoints(runs: Path, setting: Setting) -> set[int]:
    return set(Run(runs / setting.config.name).checkpoints())


def _place(setting: Setting) -> tuple[str, ...]:
    """Equal noise sits together, since it shares the captions of each batch; then equal losses."""
    config = setting.config
    return (
        config.noise.model_dump_json(),
        json.dumps(config.robust, sort_keys=True),
        json.dumps(config.loss, sort_keys=True),
        f"{config.seed:010d}",
    )


def _alike(settings: Iterable[Setting], epochs: Mapping[str, set[int]]) -> list[list[Setting]]:
    """Settings that can be stacked, and go on from a checkpoint of the same epoch or from the start.

    `epochs` are those that a setting has checkpoints of.
    """
    groups: dict[object, list[tuple[set[int], list[Setting]]]] = {}
    for setting in settings:
        own = epochs[setting.config.name]
        kind = groups.setdefault((setting.cache, setting.config.stackable()), [])
        for shared, group in kind:
            if (shared & own) or not (shared or own):
                shared.intersection_update(own)
                group.append(setting)
                break
        else:
            kind.append((own, [setting]))
    return [group for kind in groups.values() for _, group in kind]


def _cut(settings: list[Setting], widest: int, room: int | None) -> list[Stack]:
    """Equally wide stacks of neighbours; `room` is for their runs, None if it does not matter."""
    total = sum(nets(setting.config) for setting in settings)
    fair = -(-total // -(-total // widest))  # nets a stack, if all are equally wide
    size = {setting.config.name: run_bytes(setting) for setting in settings}
    base = features_bytes(settings[0])
    parts: list[list[Setting]] = []
    wide = taken = 0
    for setting in settings:
        own = size[setting.config.name]
        if room is not None and own > room:
            raise ItmfeatError(
                f"{setting.config.name} takes about {gigabytes(base + own)}, more than is free; "
                "try a smaller --batch-size or head.dim, or fewer --workers"
            )
        full = wide + nets(setting.config) > fair or (room is not None and taken + own > room)
        if not parts or full:
            parts.append([])
            wide = taken = 0
        parts[-1].append(setting)
        wide, taken = wide + nets(setting.config), taken + own
    return [Stack(part, base + sum(size[setting.config.name] for setting in part)) for part in parts]


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB"


def described(plan: Plan) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "settings": len(plan.settings),
        "finished": plan.finished,
        "diverged": plan.diverged,
        "runs": str(plan.runs),
        "free_bytes": plan.free,
        "stacks": [
            {
                "stack": place,
                "cache": str(stack.cache),
                "nets": stack.nets,
                "bytes": stack.bytes,
                "epochs": stack.settings[0].config.schedule.epochs,
                "settings": stack.names,
            }
            for place, stack in enumerate(plan.stacks, 1)
        ],
    }
