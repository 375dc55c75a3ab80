"""The numbers of a comparison: values, differences, intervals, tests, and what they allow to say."""

import math
from typing import Any

import numpy as np

from itmfeat.pairs import Ints
from itmfeat.retrieval import Queries
from itmfeat.retrieval.significance import (
    TESTED,
    Difference,
    covariances,
    holm,
    over_seeds,
    parts,
    sign_flip,
)
from itmfeat.retrieval.uncertainty import LEVEL, METRICS, Floats, bootstrap, observed, percentiles

ALPHA = 1 - LEVEL / 100


def metrics_of(
    models: list[Queries], weight: Floats, group: Ints, primary: str, effort: tuple[int, int, int]
) -> dict[str, dict[str, Any]]:
    """For each metric the values, the difference with its intervals, and the tests."""
    resamples, flips, seed = effort
    counted = np.flatnonzero(weight)
    share = weight[counted]
    own = [models[place] for place in counted]
    values = np.stack([observed(queries) for queries in own])  # (R, 11)
    moved = np.tensordot(share, bootstrap(own, resamples, seed), 1)  # (S, 11)
    ends, spread = percentiles(moved), moved.std(axis=0, ddof=1)
    a, b = (np.average(values[share * sign > 0], axis=0) for sign in (1, -1))
    table: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(METRICS):
        images = {"interval": ends[:, place].tolist(), "deviation": float(spread[place])}
        both = (float(a[place]), float(b[place]))
        table[name] = {"a": both[0], "b": both[1], "difference": both[0] - both[1], "images": images}
    added, centred = (np.stack(part) for part in zip(*(parts(queries) for queries in models), strict=True))
    p = sign_flip(np.tensordot(weight, added, 1), flips, seed)
    seeds = over_seeds(added.sum(1), covariances(centred), group, weight)
    _enter(table, "images", p, primary)
    if seeds is not None:
        _enter(table, "seeds", seeds.p, primary, seeds)
    for name, (won, lost) in _won(own, share).items():
        table[name] |= {"won": won, "lost": lost}
    return table


def _enter(
    table: dict[str, dict[str, Any]], test: str, p: Floats, primary: str, found: Difference | None = None
) -> None:
    """Put p-values of a test into the table; those beside the primary metric also corrected by Holm."""
    others = [place for place, name in enumerate(TESTED) if name != primary]
    corrected = dict(zip(others, holm(p[others]).tolist(), strict=True))
    for place, name in enumerate(TESTED):
        entry = table[name].setdefault(test, {})
        if found is not None:
            entry["interval"] = [float(found.low[place]), float(found.high[place])]
            entry["deviation"] = float(found.deviation[place])
            freedom = float(found.freedom[place])
            entry["freedom"] = freedom if math.isfinite(freedom) else None  # None: as many as one likes
        entry["p"] = float(p[place])
        if place in corrected:
            entry["p_holm"] = corrected[place]


def _won(models: list[Queries], share: Floats) -> dict[str, tuple[int, int]]:
    """Queries that more of A's runs than of B's find at each cut, and the other way round."""
    counts = {}
    for name in TESTED[:-1]:
        balance = balance_of(models, share, name)
        counts[name] = (int((balance > 1e-9).sum()), int((balance < -1e-9).sum()))
    return counts


def balance_of(models: list[Queries], share: Floats, metric: str) -> Floats:
    """Share of A's runs that find each query at the cut, less that of B's, (queries,)."""
    way, cut = metric.split("_r")
    found: Floats = share @ np.stack([getattr(queries, way) < int(cut) for queries in models])
    return found


def verdict(metric: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the tests of one metric allow to say about the two configurations.

    "significant" is None where only the images were tested and found a difference. "tolerated" is then the
    standard deviation between seeds of one configuration up to which it would stay significant.
    """
    difference = entry["difference"]
    found: dict[str, Any] = {"metric": metric, "better": None, "significant": False}
    if "seeds" in entry:
        found |= {"p": entry["seeds"]["p"], "significant": entry["seeds"]["p"] <= ALPHA}
    else:
        found["p"] = entry["images"]["p"]
        if found["p"] <= ALPHA:
            room = (difference / 1.96) ** 2 - entry["images"]["deviation"] ** 2
            found |= {"significant": None, "tolerated": float(np.sqrt(max(room, 0.0) / 2))}
    if found["significant"]:
        found["better"] = "a" if difference > 0 else "b"
    return found
