"""What a row is called: its loss, and the fewest settings that tell it from other rows."""

import json
from collections.abc import Sequence
from typing import Any

from itmfeat.report.collect import Run

DIGEST = 12  # hexadecimal digits of a digest that a person is shown


def names_of(runs: list[Run]) -> list[str]:
    """The loss of each run, with the fewest settings that tell it from other rows.

    Without them, runs of different settings would be averaged as if they were seeds of one.
    """
    general = _telling(
        runs, [key for key in _keys(runs) if not key.startswith(("loss.", "robust.", "schedule."))]
    )
    special = {}
    for loss in {run.loss for run in runs}:
        same = [run for run in runs if run.loss == loss]
        special[loss] = _telling(same, _keys(same), general)
    names = []
    for run in runs:
        told = [_setting(key, run.config.get(key)) for key in special[run.loss]]
        names.append(f"{run.loss} ({', '.join(told)})" if told else run.loss)
    return names


def _keys(runs: list[Run]) -> list[str]:
    """Keys that may make a method: neither where nor with which noise and seed it was run."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in sorted(keys, key=lambda key: (not key.endswith(("backbone", ".name")), key))
        if key not in ("dataset", "seed", "loss.name", "robust.name") and not key.startswith("noise.")
    ]


def _telling(runs: list[Run], keys: Sequence[str], told: Sequence[str] = ()) -> list[str]:
    """`told` and those of `keys` that tell runs apart which the keys before could not."""
    chosen = list(told)
    kinds = _kinds(runs, chosen)
    for key in keys:
        more = _kinds(runs, [*chosen, key])
        if more > kinds:
            chosen, kinds = [*chosen, key], more
    return chosen


def _kinds(runs: list[Run], keys: Sequence[str]) -> int:
    """How many kinds of runs there are if only `keys` are looked at."""
    return len({tuple(json.dumps(run.config.get(key)) for key in keys) for run in runs})


def _setting(key: str, value: Any) -> str:
    """A setting in a name: backbones and presets speak for themselves, other keys are named."""
    if key.endswith("digest"):
        value = str(value)[:DIGEST]
    if key.endswith(("backbone", ".name")):
        return str(value)
    return f"{key.rpartition('.')[2]}={value}"


def head_of(run: Run) -> str:
    """The head in words: its name, or its settings."""
    settings = {key[5:]: value for key, value in run.config.items() if key.startswith("head.")}
    name = settings.pop("name", None)
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name} ({told})" if name and told else str(name or told or "not recorded")
