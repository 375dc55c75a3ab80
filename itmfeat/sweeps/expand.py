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
        raise type(error)(f"{_cause(features, point)}: {error}") from None


def _configuration(features: Features, point: dict[str, Choice]) -> RunConfig:
    given: dict[str, Any] = {
        key: choice.value for key, choice in point.items() if "." not in key and key not in ("loss", *DATA)
    }
    overrides = [text for choice in point.values() for text in choice.changes]
    loss, _, method = point["loss"].value.partition("+")
    return configuration(features, loss, robust=method or None, overrides=overrides, **given)


def _cause(features: Features, point: dict[str, Choice]) -> str:
    """Where the choice was written that is wrong with the loss alone; the loss, if none of them is."""
    label = point["loss"]
    for key, choice in [("loss", label), *point.items()]:
        try:
            _configuration(features, {"loss": label, key: choice})
        except ItmfeatError:
            of_loss = key.partition(".")[0] in ("loss", "robust")
            return f"{choice.place}, {label.value}" if of_loss else choice.place
    return f"{label.place}, {label.value}"
