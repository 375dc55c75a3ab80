"""The points of a run, as its folder has them: each epoch of metrics.jsonl, then the test metrics."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itmfeat.errors import DataError
from itmfeat.loggers.writer import Writer
from itmfeat.runs import Run

NO_METRICS = ("epoch", "step", "images", "captions")


def send(path: Path, writer: Writer) -> int:
    """Write the points that the logger does not have yet; returns how many there were."""
    count = 0
    for step, values in _points(Run(path)):
        new = {tag: value for tag, value in values.items() if writer.sent.get(tag, 0) < step}
        if new:
            writer.write(step, new)
            writer.sent |= dict.fromkeys(new, step)
            count += 1
    return count


def _points(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Epochs and their values, in order; the test metrics stand at the last epoch."""
    try:
        lines = run.metrics()
        steps = [int(line["epoch"]) for line in lines]
    except (ValueError, TypeError, LookupError):
        raise DataError(f"{run.path / 'metrics.jsonl'} is damaged") from None
    for step, line in zip(steps, lines, strict=True):
        yield step, _flat(line, "/")
    if run.finished and steps:
        results = run.read("results.json")
        yield steps[-1], {f"test/{name}": value for name, value in _flat(results, "_").items()}


def _flat(tree: dict[str, Any], between: str, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested objects, by their joined names."""
    found: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, between, f"{prefix}{name}{between}")
        elif isinstance(value, int | float) and math.isfinite(value) and name not in NO_METRICS:
            found[prefix + name] = float(value)
    return found
