"""Two runs, or two configurations with several seeds, on the same queries: is the difference chance?"""

from collections.abc import Sequence
from typing import Any

from itmfeat import retrieval
from itmfeat.comparison.listing import names_of, won_and_lost
from itmfeat.comparison.metrics import metrics_of, verdict
from itmfeat.comparison.sides import (
    PathLike,
    described,
    differing,
    protocol_of,
    ranks_of,
    refuse_other_queries,
    sides_of,
    weights,
)
from itmfeat.errors import Note, UsageError, silent, unknown
from itmfeat.retrieval.significance import TESTED
from itmfeat.retrieval.uncertainty import LEVEL

TESTS = {
    "images": "these models: sign flips and bootstrap of images with their captions, the gallery fixed",
    "seeds": "these configurations: t test, variance of seeds and of images (Obuchowski-Rockette, Welch)",
}
"""What each kind of test is, in a line."""


def compare(
    a: PathLike | Sequence[PathLike],
    b: PathLike | Sequence[PathLike],
    *,
    protocol: str = "auto",
    metric: str = "rsum",
    all_seeds: bool = False,
    listed: int = 0,
    resamples: int = 1000,
    flips: int = 10_000,
    seed: int = 0,
    cache: PathLike | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """Compare `a` with `b` on the test split: plain data, for each metric both values, difference, tests.

    A side is a run folder, a folder of runs or several of either, all of one configuration with different
    seeds. Where a side is one run, finished runs of its configuration in the same folder tell how far seeds
    scatter; `all_seeds` takes them all into the comparison.

    Two kinds of test, never to be confused: "images" is about these trained models (a percentile bootstrap
    and a sign-flip test, both paired over images), "seeds" about the configurations whatever the seed
    (`retrieval.significance.over_seeds`). `verdict` is about the configurations, on the primary `metric`; it
    is open ("significant" None) where the models differ and no other seed is known. p-values of the other
    metrics are also given corrected by Holm ("p_holm").

    `listed` names so many queries that A gets right and B does not, and the other way round, at the cut of
    the metric (at 1 for rsum); their texts come from the cache, if it is there.
    """
    if metric not in TESTED:
        raise unknown("metric", metric, list(TESTED))
    if min(resamples, flips) < 100:
        raise UsageError(f"an interval takes at least 100 resamples and flips, not {min(resamples, flips)}")
    sides = sides_of(a, b, all_seeds)
    ranks = ranks_of(sides, cache, device, note)
    refuse_other_queries(ranks)
    runs, tensors = [*ranks], [*ranks.values()]
    label = protocol_of(runs, protocol)
    found = [retrieval.from_tensors(each, label) for each in tensors]
    models, (weight, group) = [queries for _, queries in found], weights(sides, runs)
    metrics = metrics_of(models, weight, group, metric, (resamples, flips, seed))
    result: dict[str, Any] = {
        "a": described(sides[0]),
        "b": described(sides[1]),
        "differ": differing(*sides),
        "protocol": found[0][0],
        "split": "test",
        "images": len(models[0].i2t),
        "captions": len(models[0].t2i),
        "metric": metric,
        "level": LEVEL,
        "effort": {"resamples": resamples, "flips": flips, "seed": seed},
        "tests": TESTS,
        "metrics": metrics,
        "verdict": verdict(metric, metrics[metric]),
    }
    if listed:
        names = names_of(runs[0], tensors[0], cache, note)
        result["listed"] = won_and_lost(models, weight, metric, listed, names)
    return result


__all__ = ["TESTS", "compare", "verdict"]
