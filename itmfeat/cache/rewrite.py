"""From feature file to feature file: what subset, merge and quantize share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import schema
from itmfeat.cache.reader import FeatureFile, holds
from itmfeat.cache.writer import FeatureSpec, FeatureWriter

Ints = NDArray[np.int64]
Payloads = dict[str, NDArray[Any]]


def spec_of(file: FeatureFile, **changes: Any) -> FeatureSpec:
    """The spec that a file was made with, but for the changes."""
    spec = FeatureSpec(
        kind=str(file.attributes["kind"]),
        backbone=str(file.attributes.get("backbone", file.path.stem)),
        dataset=str(file.attributes["dataset"]),
        lengths=np.diff(file.offsets),
        dim=file.dim,
        dtype=str(file.attributes["dtype"]),
        pooled_dim=file.extents["pooled"].shape[1] if "pooled" in file.extents else 0,
        boxed="boxes" in file.extents,
        labelled="labels" in file.extents,
        tokens=str(file.attributes["tokens"]),
        range_items=int(file.attributes["range_items"]),
        fingerprint=str(file.attributes["fingerprint"]),
        versions=str(file.attributes.get("versions", "{}")),
        projection=schema.projection(file.path),
    )
    return dataclasses.replace(spec, **changes)


def rows(file: FeatureFile, name: str, chosen: Ints) -> NDArray[Any]:
    """A copy of these rows of a payload, as they are stored."""
    return np.asarray(file.array(name)[chosen])


def stored(file: FeatureFile, items: Ints) -> Payloads:
    """The values of items in every payload, as they are stored."""
    lengths = file.offsets[items + 1] - file.offsets[items]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    vectors = np.repeat(file.offsets[items], lengths) + steps
    return {name: rows(file, name, items if name == "pooled" else vectors) for name in file.extents}


def write(
    path: Path,
    spec: FeatureSpec,
    values: Callable[[range], Payloads],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """A feature file with the values that `values` gives for ranges of items; resumes, keeps a finished one.

    `progress` is told how many of all items are done.
    """
    count = len(spec.lengths)
    if holds(path, spec):
        progress(count, count)
        return
    with FeatureWriter(path, spec) as writer:
        done = count - sum(len(writer.items(part)) for part in writer.pending)
        for part in writer.pending:
            items = writer.items(part)
            writer.write(part, **values(items))
            done += len(items)
            progress(done, count)
        writer.finish()
