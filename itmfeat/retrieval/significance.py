"""Whether two models, or two ways to train one, score differently: paired tests over images, and over seeds.

Captions of one image are not independent, so the unit is the image, with its own query and those of its
captions. Two questions are kept apart:

- Do *these trained models* differ on images like these? `sign_flip`, which knows nothing of other seeds.
- Do *these configurations* differ, whatever the seed? `over_seeds`, which needs the scatter between seeds:
  two seeds of one configuration are two different models, and a test over images alone finds that out.

Letters in shapes: N images, R runs, M = 7 metrics in the order of `TESTED`.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from itmfeat.pairs import Ints
from itmfeat.retrieval.kept import Queries
from itmfeat.retrieval.uncertainty import CUTS, HELD, LEVEL, RECALLS, Floats

TESTED = (*RECALLS, "rsum")
"""What is tested: the six recalls and their sum, each a sum of what the images add to it."""


def parts(queries: Queries) -> tuple[Floats, Floats]:
    """What each image adds to the metrics (N, M), and by how much that differs from its fair share (N, M).

    The first sums to the metrics. The second is their linearisation under resampling of images: where
    images have different numbers of captions, an image brings more queries, not more hits alone.
    """
    folds = int(queries.fold.max()) + 1
    added: list[Floats] = []
    moved: list[Floats] = []
    for rank, image in (
        (queries.i2t, np.arange(len(queries.i2t))),
        (queries.t2i, queries.caption_image),
    ):
        fold = queries.fold[image]
        weight = 100.0 / folds / np.bincount(fold)[fold]  # (X,) what a hit is worth, in percent
        share = np.bincount(image, weight)
        for k in CUTS:
            hits = np.bincount(image, weight * (rank < k)).astype(np.float64)
            rate = np.bincount(queries.fold, hits) * folds / 100.0  # (folds,)
            added.append(hits)
            moved.append(hits - rate[queries.fold] * share)
    return _with_sum(added), _with_sum(moved)


def _with_sum(columns: list[Floats]) -> Floats:
    """Columns (N,) side by side, and their sum."""
    return np.column_stack([*columns, np.sum(columns, axis=0)])


def sign_flip(difference: Floats, flips: int, seed: int = 0) -> Floats:
    """Two-sided p (M,) of a paired permutation test over images; `difference` (N, M) is A's `parts` less B's.

    If the two models are equal, which of them answered an image is a toss of a coin: the signs of the rows
    are tossed so often. An image is flipped as a whole, with its captions and in all metrics (Fisher's
    randomisation test; Smucker, Allan and Carterette, CIKM 2007, for retrieval).
    """
    rng = np.random.default_rng(seed)
    total = abs(difference.sum(0)) - 1e-9  # sums of the same terms in another order are ties
    reached = np.ones(difference.shape[1])
    step = max(1, HELD // len(difference))
    for start in range(0, flips, step):
        sign = rng.integers(0, 2, (min(step, flips - start), len(difference)), np.int8) * 2.0 - 1.0
        reached += (abs(sign @ difference) >= total).sum(0)
    p: Floats = reached / (1 + flips)
    return p


def holm(p: Floats) -> Floats:
    """p (M,) corrected for M tests (Holm, 1979)."""
    order = p.argsort()
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    corrected = np.empty_like(p)
    corrected[order] = stepped
    return corrected


def covariances(moved: Floats) -> Floats:
    """Sampling covariance (M, R, R) over images of the metrics of runs, from their `parts` (R, N, M)."""
    images = moved.shape[1]
    products = np.einsum("rnm,snm->mrs", moved, moved)
    return np.asarray(products * images / max(1, images - 1), np.float64)


class Difference(NamedTuple):
    """A minus B over images and seeds, each (M,): deviation, degrees of freedom, interval, two-sided p."""

    deviation: Floats
    freedom: Floats
    low: Floats
    high: Floats
    p: Floats


def over_seeds(values: Floats, covariance: Floats, group: Ints, weight: Floats) -> Difference | None:
    """Test the difference `weight @ values` of metrics (R, M) against the scatter of seeds and of images.

    `group` (R,) numbers the configuration of each run, one or two of them; `weight` (R,) is 1/n for the n
    runs of A, -1/n for those of B, and 0 for further seeds that only tell the scatter. None if no
    configuration has two runs.

    Seeds are nested in configurations and crossed with images, as readers and cases are in diagnostic
    studies, so the variance is that of Obuchowski and Rockette (1995) in Hillis's form (Statistics in
    Medicine 33, 2014): the variance between seeds, which holds what each model has of its own on these
    images, and Cov2 - Cov3 of both sides, what the configurations have of their own on them. The seeds of
    each side have a variance of their own (Welch), with Satterthwaite's degrees of freedom; one run alone
    borrows that of the other side. Seeds can only add to the variance over images of these very models, so
    the sum is never taken for less, however alike two or three seeds happen to be.
    """
    numbers = np.unique(group)
    known = [number for number in numbers if (group == number).sum() > 1]
    if not known:
        return None
    between, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for number in known:
        mine = group == number if len(known) > 1 else np.full(len(group), True)
        seeds = values[group == number]
        term = (weight[mine] ** 2).sum() * seeds.var(axis=0, ddof=1)
        between += term
        spread += term**2 / (len(seeds) - 1)
    variance = between + _of_images(covariance, group)
    variance = np.maximum(variance, np.einsum("r,mrs,s->m", weight, covariance, weight))
    difference, deviation = weight @ values, np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(spread > 0, variance**2 / spread, np.inf)
        score = np.where(difference == 0, 0.0, abs(difference) / deviation)
    reach = stats.t.ppf(0.5 + LEVEL / 200, freedom) * deviation
    p = 2 * stats.t.sf(score, freedom)
    return Difference(deviation, freedom, difference - reach, difference + reach, p)


def _of_images(covariance: Floats, group: Ints) -> Floats:
    """Variance (M,) of the difference of two configurations by the draw of images, seeds put aside."""
    numbers = np.unique(group)
    if len(numbers) == 1:
        return np.zeros(len(covariance))
    first, second = (np.flatnonzero(group == number) for number in numbers)
    within = [_between(covariance[:, own][:, :, own]) for own in (first, second)]
    across = covariance[:, first][:, :, second].mean(axis=(1, 2))
    return np.asarray(np.maximum(within[0] + within[1] - 2 * across, 0.0))


def _between(covariance: Floats) -> Floats:
    """Mean covariance (M,) of different runs of (M, R, R); of one run alone its variance, which is more."""
    runs = covariance.shape[1]
    total: Floats = covariance.sum(axis=(1, 2))
    if runs > 1:
        total = (total - np.trace(covariance, axis1=1, axis2=2)) / (runs * (runs - 1))
    return total
