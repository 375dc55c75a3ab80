"""Bootstrap over images: how far the metrics would move on another draw of images of the same kind.

An image is drawn together with its captions, because their ranks are not independent (Efron and
Tibshirani, 1993, chapter 8: the unit that is drawn is the independent one). Ranks are not computed anew: the
gallery stays the whole split, and a resample weighs each query by how often its image was drawn. Under
`5x1k` each fold is drawn from its own images, so that every fold keeps its 1000.

Letters in shapes: N images, C captions, S resamples, M = 11 metrics in the order of `METRICS`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.pairs import Ints
from itmfeat.retrieval.kept import Queries

Floats = NDArray[np.float64]

DIRECTION = ("r1", "r5", "r10", "medr", "meanr")
METRICS = (*(f"{way}_{key}" for way in ("i2t", "t2i") for key in DIRECTION), "rsum")
RECALLS = tuple(name for name in METRICS if "_r" in name)
CUTS = (1, 5, 10)
LEVEL = 95  # percent of the intervals
HELD = 2**22  # weights held at once, 32 MiB


def draw(fold: Ints, resamples: int, rng: np.random.Generator) -> Ints:
    """Images drawn with replacement, as many of each fold as it has, (S, N); `fold` (N,) is of each image."""
    members = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    return np.hstack([own[rng.integers(len(own), size=(resamples, len(own)))] for own in members])


def count(drawn: Ints) -> Ints:
    """How often each image stands in each resample (S, N), as (S, N)."""
    resamples, images = drawn.shape
    place = drawn + images * np.arange(resamples)[:, None]
    return np.bincount(place.ravel(), minlength=drawn.size).reshape(drawn.shape)


def weighted(queries: Queries, counts: Ints) -> Floats:
    """All metrics (S, M) where image n counts `counts` (S, N) times, its captions with it."""
    sides = ((queries.i2t, np.arange(len(queries.i2t))), (queries.t2i, queries.caption_image))
    ways = []
    for rank, image in sides:
        own = [queries.fold[image] == number for number in np.unique(queries.fold)]
        ways.append(np.mean([_direction(rank[mine], counts[:, image[mine]]) for mine in own], axis=0))
    recalls = sum(way[:, :3].sum(1) for way in ways)
    return np.column_stack([*ways, recalls])


def _direction(rank: Ints, weight: Ints) -> Floats:
    """Recalls in percent, median and mean of ranks (X,) that count `weight` (S, X) times: (S, 5)."""
    order = rank.argsort()
    rank, weight = rank[order], weight[:, order]
    upto = weight.cumsum(1)
    total = upto[:, -1:]
    # Ranks ascend, so the hits at k are a prefix, and the median stands where the count passes the middle.
    hits = [upto[:, found - 1] if (found := int((rank < k).sum())) else 0 * total[:, 0] for k in CUTS]
    low, high = (rank[(upto > middle).argmax(1)] for middle in ((total - 1) // 2, total // 2))
    mean = weight @ rank.astype(np.float64) / total[:, 0] + 1
    return np.column_stack([*(100.0 * hit / total[:, 0] for hit in hits), (low + high) // 2 + 1, mean])


def observed(queries: Queries) -> Floats:
    """The metrics themselves, (M,)."""
    (metrics,) = weighted(queries, np.ones((1, len(queries.i2t)), np.int64))
    return np.asarray(metrics, np.float64)


def bootstrap(models: list[Queries], resamples: int, seed: int = 0) -> Floats:
    """Metrics of models over the same resamples of their common images, (models, S, M)."""
    blocks = [
        np.stack([weighted(queries, counts) for queries in models])
        for counts in _resampled(models[0], resamples, seed)
    ]
    return np.concatenate(blocks, axis=1)


def _resampled(queries: Queries, resamples: int, seed: int) -> Iterator[Ints]:
    rng = np.random.default_rng(seed)
    step = max(1, HELD // len(queries.t2i))
    for start in range(0, resamples, step):
        yield count(draw(queries.fold, min(step, resamples - start), rng))


def percentiles(values: Floats) -> Floats:
    """The ends (2, ...) of the percentile interval at `LEVEL` of `values` (S, ...)."""
    tail = (100 - LEVEL) / 2
    ends: Floats = np.percentile(values, [tail, 100 - tail], axis=0)
    return ends


def intervals(queries: Queries, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Percentile intervals [low, high] of all metrics, in the shape of `Results`, and how they were made."""
    ends = percentiles(bootstrap([queries], resamples, seed)[0]).T.tolist()
    named = dict(zip(METRICS, ends, strict=True))
    ways = {way: {key: named[f"{way}_{key}"] for key in DIRECTION} for way in ("i2t", "t2i")}
    made = {"level": LEVEL, "resamples": resamples, "seed": seed, "over": "images"}
    return {**made, **ways, "rsum": named["rsum"]}
