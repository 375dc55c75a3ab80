"""The plan of a sweep: which settings train side by side, and what that takes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itmfeat.errors import ItmfeatError, UsageError
from itmfeat.runs import Run
from itmfeat.sweeps.expand import Setting
from itmfeat.sweeps.memory import nets, run_bytes, shared_bytes

# Nets of a stack: on a CPU wider ones gain little more; on a GPU (H100) a step of one took 5.7 ms, of 25
# 13.6 ms, of 75 17.6 ms.
WIDEST, WIDEST_ON_GPU = 32, 96


@dataclass(frozen=True)
class Stack:
    """Settings that train side by side."""

    number: int  # from 1
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
    room: int | None  # bytes that a stack may take
    width: int  # nets of a stack at most

    def folders(self) -> list[Path]:
        """The run folders of all settings, in the order of the grids."""
        return [self.runs / setting.config.name for setting in self.settings]

    def only(self, number: int, count: int) -> "Plan":
        """The part of this plan that is one of its `count` stacks."""
        if count != len(self.stacks):
            raise UsageError(
                f"the plan is not of {count} stacks but of {len(self.stacks)}: the grids or cache changed "
                "since the commands were printed; print them again"
            )
        stack = self.stacks[number - 1]
        names = set(stack.names)
        return replace(
            self,
            settings=[setting for setting in self.settings if setting.config.name in names],
            stacks=[stack],
            finished=[name for name in self.finished if name in names],
            diverged=[name for name in self.diverged if name in names],
        )


def state(run: Run) -> str:
    """ "finished", "diverged" or "open"."""
    if run.finished:
        return "finished"
    manifest = run.path / "manifest.json"
    return "diverged" if manifest.exists() and run.read("manifest.json").get("diverged") else "open"


def make_plan(
    settings: list[Setting],
    runs: Path,
    room: int | None,
    *,
    width: int | None = None,
    widest: int = WIDEST,
    workers: int = 1,
    everything: bool = False,
) -> Plan:
    """Form stacks of at most `width` nets, of which `workers` train at a time, each in `room` bytes.

    Settings that cannot be stacked are kept apart, and so are those that go on from different epochs. Without
    a `width` it is what fits into the room, up to `widest`; a room of None is not known. With `everything`
    finished settings are planned like others, so that the stacks depend on the settings and the width alone.
    """
    if width is not None and width < 1:
        raise UsageError(f"--width must be at least 1, not {width}")
    states = {setting.config.name: state(Run(runs / setting.config.name)) for setting in settings}
    left = [s for s in settings if everything or states[s.config.name] == "open"]
    groups = _alike(left, {s.config.name: set() if everything else _checkpoints(runs, s) for s in left})
    if width is None:
        share = -(-sum(nets(setting.config) for setting in left) // workers)
        fitting = [] if room is None else [_fitting(group, room) for group in groups]
        width = min([widest, max(1, share), *fitting])
    parts = [part for group in groups for part in _cut(sorted(group, key=_place), width)]
    return Plan(
        settings,
        [Stack(number, part, _bytes(part)) for number, part in enumerate(parts, 1)],
        runs,
        [name for name, found in states.items() if found == "finished"],
        [name for name, found in states.items() if found == "diverged"],
        room,
        width,
    )


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


def _fitting(group: list[Setting], room: int) -> int:
    """Nets that fit into so many bytes beside their features, if all are as large as the largest."""
    base = shared_bytes(group[0])
    largest = max(group, key=lambda setting: run_bytes(setting) / nets(setting.config))
    size = run_bytes(largest)
    if base + size > room:
        raise ItmfeatError(
            f"{largest.config.name} takes about {gigabytes(base + size)} and there are {gigabytes(room)}: "
            "try a smaller --batch-size or head.dim, fewer --workers, or --width 1 to train it nevertheless"
        )
    return (room - base) * nets(largest.config) // size


def _cut(settings: list[Setting], width: int) -> list[list[Setting]]:
    """Stacks of neighbours, about equally wide; a run of two nets is never cut."""
    left = sum(nets(setting.config) for setting in settings)
    parts: list[list[Setting]] = []
    room = 0
    for setting in settings:
        size = nets(setting.config)
        if room < size:
            parts.append([])
            room = -(-left // -(-left // width))  # if this stack and those to come were equally wide
        parts[-1].append(setting)
        room, left = room - size, left - size
    return parts


def _bytes(settings: list[Setting]) -> int:
    return shared_bytes(settings[0]) + sum(map(run_bytes, settings))


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
        "room_bytes": plan.room,
        "width": plan.width,
        "stacks": [
            {
                "stack": stack.number,
                "cache": str(stack.cache),
                "nets": stack.nets,
                "bytes": stack.bytes,
                "epochs": stack.settings[0].config.schedule.epochs,
                "settings": stack.names,
            }
            for stack in plan.stacks
        ],
    }
