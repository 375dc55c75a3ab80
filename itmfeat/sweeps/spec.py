"""What a sweep asks for: grids of settings from a file and flags, strict, before any cache is opened."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from itmfeat import losses, robust
from itmfeat.errors import ItmfeatError, UsageError, unknown
from itmfeat.sweeps.document import Value, given, read_yaml

TEXTS = ("cache", "image_backbone", "text_backbone", "noise_protocol", "noise_file", "head", "order")
NUMBERS = ("noise", "lr")
WHOLE = ("epochs", "batch_size", "seed")
AXES = ("loss", *TEXTS, *NUMBERS, *WHOLE, "noise_seed")
OF_SCHEDULE = ("epochs", "batch_size", "lr", "order")
SECTIONS = ("head", "schedule", "loss", "robust", "data")
"""Of the configuration: keys like `loss.margin` reach all that is in them, as --set does."""
RANGE = ("low", "high", "log", "step", "choices")
WHOLE_FILE = ("name", "runs", "grids")


@dataclass(frozen=True)
class Choice:
    """A value of one axis; `changes` are texts like "loss.margin=0.2" that come with it."""

    value: Any
    place: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The choices on each axis; all their combinations are settings. `ranges` are for a search alone."""

    axes: dict[str, list[Choice]]
    ranges: dict[str, Value]
    place: str

    def __len__(self) -> int:
        return math.prod(len(choices) for choices in self.axes.values())

    def points(self) -> Iterator[dict[str, Choice]]:
        """All combinations. Without noise its protocol and seed mean nothing: the first stand for all."""
        for chosen in product(*self.axes.values()):
            point = dict(zip(self.axes, chosen, strict=True))
            clean = "noise_file" not in point and ("noise" not in point or point["noise"].value == 0)
            drawn = [key for key in ("noise_protocol", "noise_seed") if key in point]
            if not clean or all(point[key] is self.axes[key][0] for key in drawn):
                yield point


@dataclass(frozen=True)
class Spec:
    """A whole sweep."""

    grids: list[Grid]
    name: str | None
    runs: Path

    def __len__(self) -> int:
        return sum(len(grid) for grid in self.grids)


def read_spec(file: Path | None, flags: Mapping[str, Any], runs: Path | None = None) -> Spec:
    """A sweep from a file, from flags (names as in the file), or both: a flag takes the place of its key.

    A UsageError or DataError names the file, the line and what is known there.
    """
    top = read_yaml(file) if file else Value({}, "the flags")
    if not isinstance(top.held, dict):
        raise UsageError(f"{top.place}: a sweep is a mapping, as in `loss: [triplet, snll]`")
    whole = {key: top.held[key] for key in WHOLE_FILE if key in top.held}
    shared = {key: value for key, value in top.held.items() if key not in WHOLE_FILE}
    asked = {key: given(f"--{_flag(key)}", value) for key, value in flags.items()}
    grids = [_grid(shared, part, asked) for part in _parts(whole.get("grids"), top.place)]
    name = None if "name" not in whole else _text("name", whole["name"])
    if name is not None and (Path(name).name != name or name == ".."):
        raise UsageError(
            f"{whole['name'].place}: name is that of one folder, not {name!r}; `runs:` takes a path"
        )
    if runs is None and "runs" in whole:
        runs = Path(_text("runs", whole["runs"]))
    return Spec(grids, name, runs or (Path("runs") / name if name else Path("runs")))


def _flag(key: str) -> str:
    return f"set {key}" if "." in key else key.replace("_", "-")


def _parts(grids: Value | None, place: str) -> list[Value]:
    """The mappings under `grids`, one that is empty if there are none."""
    if grids is None:
        return [Value({}, place)]
    parts = grids.each()
    if not parts or not all(isinstance(part.held, dict) for part in parts):
        raise UsageError(f"{grids.place}: `grids` is a list of mappings, as in `- loss: [triplet, snll]`")
    return parts


def _grid(shared: dict[str, Value], part: Value, asked: dict[str, Value]) -> Grid:
    keys = _short(shared) | _short(part.held) | _short(asked)
    axes: dict[str, list[Choice]] = {}
    ranges: dict[str, Value] = {}
    for key, value in keys.items():
        _check_key(key, value)
        if (key != "loss" and isinstance(value.held, dict)) or _is_range(value):
            ranges[key] = _range(key, value)
        else:
            axes[key] = _choices(key, value)
    if "loss" not in keys:
        raise UsageError(f"{part.place}: name losses, as in --loss triplet,snll or `loss: [triplet, snll]`")
    if "noise_file" in axes and (more := {"noise", "noise_protocol", "noise_seed"} & set(axes)):
        place = axes["noise_file"][0].place
        raise UsageError(f"{place}: noise_file stands in the place of {min(more)}; give one of them")
    order = sorted(axes, key=lambda key: AXES.index(key) if key in AXES else -1)
    return Grid({key: axes[key] for key in order}, ranges, part.place)


def _short(keys: dict[str, Value]) -> dict[str, Value]:
    """`schedule.lr` as `lr`, which it is too, so that a flag takes the place of either."""
    found: dict[str, Value] = {}
    for key, value in keys.items():
        bare = key.removeprefix("schedule.")
        name = bare if bare in OF_SCHEDULE else key
        if name in found:
            raise UsageError(f"{value.place}: {bare} and schedule.{bare} are one key; give one of them")
        found[name] = value
    return found


def _check_key(key: str, value: Value) -> None:
    place = value.place
    section, dot, _ = key.partition(".")
    if key in AXES or (dot and section in SECTIONS):
        return
    if key in WHOLE_FILE:
        raise UsageError(f"{place}: {key} stands at the top of a file, for all its grids")
    if key == "robust":
        raise UsageError(f"{place}: write the robust method with its loss, as in `loss: [snll+ncr]`")
    if key == "set":
        raise UsageError(f"{place}: each key that --set takes is one here, as in `loss.margin: [0.1, 0.2]`")
    with at(value):
        raise unknown("key", key, [*AXES, *WHOLE_FILE, *(f"{name}.KEY" for name in SECTIONS)])


def _choices(key: str, value: Value) -> list[Choice]:
    """The values on an axis, of the right kind, each once."""
    items = value.each()
    if not items:
        raise UsageError(f"{value.place}: {key} is empty, so there is nothing to train")
    found: dict[Any, Choice] = {}
    for item in items:
        made = _losses(item) if key == "loss" else [_choice(key, item)]
        for choice in made:
            found.setdefault((choice.value, choice.changes), choice)
    return list(found.values())


def choice_of(key: str, item: Value) -> Choice:
    """A single value on an axis."""
    return _losses(item)[0] if key == "loss" else _choice(key, item)


def _choice(key: str, item: Value) -> Choice:
    if "." in key:
        return Choice(None, item.place, (f"{key}={_as_text(item)}",))
    if key in TEXTS:
        return Choice(_text(key, item), item.place)
    if key == "noise_seed" and item.held == "published":
        return Choice(item.held, item.place)
    return Choice(_number(key, item, key not in NUMBERS), item.place)


def _losses(item: Value) -> list[Choice]:
    """A loss ("snll", "snll+ncr"), or a mapping of its name and parameters, whose lists make a grid."""
    keys = item.held if isinstance(item.held, dict) else {"name": item}
    if "name" not in keys:
        raise UsageError(f"{item.place}: a loss with parameters is written `{{name: triplet, margin: 0.1}}`")
    name = _text("loss", keys["name"])
    loss, plus, method = name.partition("+")
    with at(item):
        losses.parameters(loss)
        if plus:
            robust.parameters(method)
    axes = []
    for key, value in keys.items():
        if key != "name":
            path = key if "." in key else f"loss.{key}"
            _check_key(path, value)
            axes.append([choice.changes for choice in _choices(path, value)])
    return [
        Choice(name, item.place, tuple(text for part in parts for text in part)) for parts in product(*axes)
    ]


def _is_range(value: Value) -> bool:
    return isinstance(value.held, dict) and bool(value.held) and set(value.held) <= set(RANGE)


def _range(key: str, value: Value) -> Value:
    with at(value):
        for name in value.held:
            if name not in RANGE:
                raise unknown(f"part of the range of {key}", name, list(RANGE))
        if {"low", "high", "choices"} & set(value.held) not in ({"low", "high"}, {"choices"}):
            raise UsageError(f"a range of {key} has low and high, or choices")
    for name, part in value.held.items():
        if name == "choices":
            for item in part.each():
                _as_text(item)
        elif name != "log":
            _number(f"{name} of {key}", part, whole=False)
        elif not isinstance(part.held, bool):
            raise UsageError(f"{part.place}: log of {key} must be true or false, not {_shown(part)}")
    return value


def _text(key: str, value: Value) -> str:
    if not isinstance(value.held, str | Path) or not str(value.held).strip():
        raise UsageError(f"{value.place}: {key} must be a name, not {_shown(value)}")
    return str(value.held)


def _number(key: str, item: Value, whole: bool) -> int | float:
    """YAML takes 1e-3 for a text, and flags are texts anyhow."""
    try:
        number = math.nan if isinstance(item.held, bool) else float(item.held)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{item.place}: {key} must be {kind}, not {_shown(item)}")
    return int(number) if whole else number


def _as_text(item: Value) -> str:
    """As --set takes it: JSON, or a plain word."""
    if isinstance(item.held, list | dict):
        raise UsageError(f"{item.place}: {_shown(item)} is no single value")
    return item.held if isinstance(item.held, str) else json.dumps(item.held, default=str)


def _shown(value: Value) -> str:
    if isinstance(value.held, dict):
        return "a mapping"
    return "a list" if isinstance(value.held, list) else "nothing" if value.held is None else repr(value.held)


@contextmanager
def at(cause: Value | Choice | None) -> Iterator[None]:
    """Errors raised inside begin with where their cause was written, if it was."""
    try:
        yield
    except ItmfeatError as error:
        if cause is None:
            raise
        raise type(error)(f"{cause.place}: {error}") from None


def split_flag(name: str, text: str) -> list[str]:
    """The values of a comma list."""
    values = [part.strip() for part in text.split(",")]
    if not all(values):
        raise UsageError(f"{name} has an empty value: {text!r}")
    return values


def split_overrides(texts: Iterable[str]) -> dict[str, list[str]]:
    """Texts like "loss.margin=0.1,0.2"."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set takes section.key=value,value, not {text!r}")
        found.setdefault(key, []).extend(split_flag(f"--set {key}", values))
    return found
