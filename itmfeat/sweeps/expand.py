"""From grids to settings: complete configurations on caches that are there."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from itmfeat.cache import find_cache, open_cache
from itmfeat.config import RunConfig
from itmfeat.errors import ItmfeatError, UsageError
from itmfeat.features import Features
from itmfeat.settings import configuration
from itmfeat.sweeps.spec import Choice, Spec, at

MANY = 10_000  # settings that are asked for by mistake more often than not
DATA = ("cache", "image_backbone", "text_backbone")  # axes that choose the features


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
    def opened(folder: Choice | None, *backbones: Choice | None) -> tuple[Path, Features]:
        with at(folder):
            path = find_cache(None if folder is None else Path(folder.value))
            found = open_cache(path)
        files = []
        for kind, choice in zip(("image", "text"), backbones, strict=True):
            with at(choice):
                files.append(found.open(kind, None if choice is None else choice.value))
        return path, Features(found, *files)

    found: dict[str, Setting] = {}
    for point in points:
        path, features = opened(*(point.get(key) for key in DATA))
        config = configured(features, point)
        found.setdefault(config.digest, Setting(config, path))
    return list(found.values())


def configured(features: Features, point: dict[str, Choice]) -> RunConfig:
    """The configuration of a point of a grid."""
    try:
        return _configuration(features, point)
    except ItmfeatError as error:
        raise type(error)(f"{_cause(features, point, str(error))}: {error}") from None


def _configuration(features: Features, point: dict[str, Choice]) -> RunConfig:
    given: dict[str, Any] = {
        key: choice.value for key, choice in point.items() if "." not in key and key not in ("loss", *DATA)
    }
    overrides = [text for choice in point.values() for text in choice.changes]
    loss, _, method = point["loss"].value.partition("+")
    return configuration(features, loss, robust=method or None, overrides=overrides, **given)


def _cause(features: Features, point: dict[str, Choice], message: str) -> str:
    """Where the choices were written without which this error would not be; the loss, if there are none."""
    label = point["loss"]
    causes = [key for key in point if key != "loss" and _error(features, point, key) != message]
    of_loss = not causes or any(key.partition(".")[0] in ("loss", "robust") for key in causes)
    places = dict.fromkeys(point[key].place for key in causes or ["loss"])
    return ", ".join([*places, label.value] if of_loss else places)


def _error(features: Features, point: dict[str, Choice], left_out: str) -> str:
    """What is wrong with a point without one of its choices."""
    try:
        _configuration(features, {key: choice for key, choice in point.items() if key != left_out})
    except ItmfeatError as error:
        return str(error)
    return ""
