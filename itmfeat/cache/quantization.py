"""Smaller features from features: int8 or float16 values, and fewer dimensions by PCA.

The new files stand beside their sources in the same cache, as backbones of their own.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itmfeat.cache import pca, schema
from itmfeat.cache.folder import Cache, open_cache
from itmfeat.cache.index import DatasetIndex
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.rewrite import Payloads, spec_of, stored, write
from itmfeat.errors import DataError, Note, UsageError, silent, unknown

DTYPES = ["int8", "float16"]
NONE = "none"
STEPS = "quantized"  # key of the fingerprint: a list of what was done, the last step last

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Plan:
    """One file to make."""

    file: FeatureFile
    path: Path
    dtype: str
    dim: int | None  # of the PCA, if there is to be one

    @property
    def step(self) -> dict[str, Any]:
        """What is to be done with which file, as its fingerprint will say; the PCA is not known yet."""
        return {"source": self.file.path.stem, "digest": self.file.digest, "dtype": self.dtype}


def quantize_cache(
    cache: Path,
    *,
    image_backbone: str | None = None,
    text_backbone: str | None = None,
    dtype: str | None = None,
    dim: int | None = None,
    name: str | None = None,
    progress: Progress = lambda what, done, total: None,
    note: Note = silent,
) -> list[dict[str, Any]]:
    """Make a smaller feature file of a backbone of each kind, and say what was made as plain data.

    Without a name the backbone is the only one that was not made here; "none" leaves a side out. `dtype` is
    int8 or float16: by default int8, under a PCA to `dim` dimensions what the source has. The new file is
    called `name`, or its source's name with what was done. Nothing is written over; a finished file is kept
    and an interrupted one goes on.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if name is not None and not re.fullmatch(r"\w[\w.@-]*", name):
        raise UsageError(f"--name {name!r} must be a plain name, as butd-small: it becomes a file's")
    found = open_cache(cache)
    plans = [
        _plan(found, kind, source, dtype, dim, name)
        for kind, source in _sources(found, {"image": image_backbone, "text": text_backbone})
    ]
    for plan in plans:
        plan.file.check()
    return [_make(plan, found.index, progress, note) for plan in plans]


def _sources(cache: Cache, asked: dict[str, str | None]) -> list[tuple[str, str]]:
    """Kind and name of each file to be read: the one asked for, or the only one that is no result."""
    chosen = []
    for kind, name in asked.items():
        names = cache.backbones(kind)
        if name == NONE or (name is None and not names):
            continue
        if name is None:
            names = [one for one in names if STEPS not in cache.open(kind, one).fingerprint]
        chosen.append((kind, names[0] if name is None and len(names) == 1 else cache.choose(kind, name)))
    if not chosen:
        raise UsageError(f"there is nothing to do: name an image or a text backbone of {cache.path}")
    return chosen


def _plan(
    cache: Cache, kind: str, source: str, dtype: str | None, dim: int | None, name: str | None
) -> _Plan:
    """What to make of a file; an error if it cannot be made or would be no smaller."""
    file = cache.open(kind, source)
    stored_as = str(file.attributes["dtype"])
    dtype = dtype or (stored_as if dim else "int8")
    aside = f"; to leave it out, pass --{kind}-backbone none"
    if dim is None:
        sizes = [np.dtype(schema.DTYPES[one]).itemsize for one in (stored_as, dtype)]
        if sizes[0] <= sizes[1]:
            raise UsageError(f"{file.path} holds {stored_as}, so {dtype} would not make it smaller{aside}")
    elif not 1 <= dim < file.dim:
        raise UsageError(f"--pca must be 1 to {file.dim - 1} for {file.path}, not {dim}{aside}")
    elif pca.projection_of(file):
        raise UsageError(f"{file.path} was made by a PCA already; take the file that it was made of{aside}")
    words = [f"pca{dim}"] if dim else []
    if dtype != stored_as:
        words.append(dtype)
    made = name or source + ("-" if "@" in source else "@") + "-".join(words)
    if made == source:
        raise UsageError(f"--name {name} is the name of the source; choose another")
    plan = _Plan(file, cache.path / kind / f"{made}.h5", dtype, dim)
    if plan.path.exists() and _earlier(plan, plan.path) is None:
        raise DataError(f"{plan.path} exists and is something else; choose another --name or delete it")
    return plan


def _earlier(plan: _Plan, path: Path) -> dict[str, Any] | None:
    """The fingerprint of a file, finished or not, that was made by the same plan; else None."""
    with schema.open_file(path) as file:
        fingerprint = dict(json.loads(str(schema.attributes(file).get("fingerprint", "{}"))))
    last = dict([{}, *fingerprint.get(STEPS, [])][-1])
    fitted = last.pop("pca", {})
    return fingerprint if last == plan.step and fitted.get("dim") == plan.dim else None


def _fit(plan: _Plan, index: DatasetIndex, note: Note) -> tuple[pca.Projection | None, dict[str, Any]]:
    """The projection of a plan and the fingerprint of its result.

    Other threads or libraries round a fit in another way, so an unfinished file goes on with its own.
    """
    if plan.dim is None:
        return None, _fingerprint(plan, {})
    for path in (plan.path, plan.path.with_name(plan.path.name + ".part")):
        with suppress(DataError):  # nothing there, or a kill hit while it was created
            if found := _earlier(plan, path):
                return pca.Projection(**schema.projection(path)), found
    note(f"{plan.path.stem}: fitting {plan.dim} of {plan.file.dim} dimensions")
    projection, facts = pca.fit(plan.file, index, plan.dim)
    return projection, _fingerprint(plan, {"pca": facts})


def _fingerprint(plan: _Plan, added: dict[str, Any]) -> dict[str, Any]:
    known = plan.file.fingerprint
    return {**known, STEPS: [*known.get(STEPS, []), {**plan.step, **added}]}


def _make(plan: _Plan, index: DatasetIndex, progress: Progress, note: Note) -> dict[str, Any]:
    """Write the file of a plan."""
    file, name = plan.file, plan.path.stem
    projection, fingerprint = _fit(plan, index, note)
    changes: dict[str, Any] = {"dtype": plan.dtype, "fingerprint": json.dumps(fingerprint, sort_keys=True)}
    if projection is not None:
        changes |= {"dim": plan.dim, "projection": vars(projection)}
        if file.has_means:
            changes["pooled_dim"] = plan.dim

    def values(items: range) -> Payloads:
        found = stored(file, np.arange(items.start, items.stop))
        return found if projection is None else _projected(found, projection, file, items)

    write(plan.path, spec_of(file, **changes), values, lambda done, total: progress(name, done, total))
    made = FeatureFile(plan.path)
    return {
        "kind": made.attributes["kind"],
        "name": name,
        "source": file.path.stem,
        "vectors": made.extents["features"].shape[0],
        "dim": made.dim,
        "dtype": plan.dtype,
        "bytes": plan.path.stat().st_size,
        "source_bytes": file.path.stat().st_size,
        "pca": fingerprint[STEPS][-1].get("pca"),
    }


def _projected(found: Payloads, projection: pca.Projection, file: FeatureFile, items: range) -> Payloads:
    """The payloads of items with their vectors projected, and their means if that is what `pooled` holds.

    The mean of the projections is the projection of the mean. An item without vectors keeps a mean of zero.
    """
    vectors = found.pop("features")
    if "scales" in found:
        vectors = vectors * found.pop("scales")[:, None]
    found["features"] = projection(vectors)
    if file.has_means:
        lengths = np.diff(file.offsets[items.start : items.stop + 1])
        found["pooled"] = np.where(lengths[:, None] > 0, projection(found["pooled"]), np.float32(0))
    return found
