"""From grids to settings: complete configurations on caches that are there."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from itmfeat.cache import find_cache
from itmfeat.config import RunConfig
from itmfeat.errors import UsageError
from itmfeat.features import Features, open_features
from itmfeat.settings import configuration
from itmfeat.sweeps.spec import Choice, Spec, at

MANY = 10_000  # settings that are asked for by mistake more often than not


@dataclass(frozen=True)
class Setting:
    """A run that a sweep asks for, and the cache that it trains on."""

    config: RunConfig
    cache: Path


def settings(spec: Spec, *, yes: bool = False) -> list[Setting]:
    """The settings of all grids, each once; an error names where its cause was written."""
    if len(spec) > MANY and not yes:
        raise UsageError(f"the grids have {len(spec)} settings; if that is meant, add --yes")
    return distinct(point for grid in spec.grids for point in grid.points())


def distinct(points: Iterable[dict[str, Choice]]) -> list[Setting]:
    """Settings of points of a grid; those that come to the same configuration count once."""

    @cache
    def opened(*which: str | None) -> tuple[Path, Features]:
        path = find_cache(None if which[0] is None else Path(which[0]))
        return path, open_features(path, *which[1:])

    found: dict[str, Setting] = {}
    for point in points:
        data = [point.get(key) for key in ("cache", "image_backbone", "text_backbone")]
        with at(*_places(data)):
            path, features = opened(*(None if choice is None else choice.value for choice in data))
        config = configured(features, point)
        found.setdefault(config.digest, Setting(config, path))
    return list(found.values())


def configured(features: Features, point: dict[str, Choice]) -> RunConfig:
    """The configuration of a point of a grid."""
    axes = {key: choice for key, choice in point.items() if "." not in key}
    given: dict[str, Any] = {
        key: choice.value
        for key, choice in axes.items()
        if key not in ("loss", "cache", "image_backbone", "text_backbone")
    }
    overrides = [text for choice in point.values() for text in choice.changes]
    label = point["loss"]
    loss, _, method = label.value.partition("+")
    changed = [choice for choice in point.values() if choice.changes and choice.place != label.place]
    with at(label.place, label.value, *_places(changed)):
        return configuration(features, loss, robust=method or None, overrides=overrides, **given)


def _places(choices: Iterable[Choice | None]) -> list[str]:
    return list(dict.fromkeys(choice.place for choice in choices if choice is not None))
