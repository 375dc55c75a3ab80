"""How well a run tells clean pairs from noisy ones: known, because the true correspondence is."""

import numpy as np
from numpy.typing import NDArray

BINS, LOWEST = 24, -6  # of a histogram of matches: equal parts of their decimal logarithm from here to 0


def separation(
    clean: NDArray[np.bool_], match: NDArray[np.float32], split: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """AUC of `match` (C,) as a score for `clean` (C,), and precision and recall of a split (n, C).

    Pairs not seen yet have the match NaN and do not count. Precision is the share of truly clean pairs among
    those that the split takes for clean, recall the share of the clean pairs that it takes; both are
    means over the n nets. Empty without noise, where there is nothing to tell apart.
    """
    from sklearn.metrics import roc_auc_score

    seen = ~np.isnan(match)
    if clean[seen].all() or not clean[seen].any():
        return {}
    found = {"auc": float(roc_auc_score(clean[seen], match[seen]))}
    if split is not None:
        right = (split & clean).sum(1)
        found["precision"] = float(np.mean(right / np.maximum(split.sum(1), 1)))
        found["recall"] = float(np.mean(right / clean.sum()))
    return found


def histogram(clean: NDArray[np.bool_], match: NDArray[np.float32]) -> dict[str, list[int]]:
    """How many clean and how many noisy pairs have a match (C,) in each of `BINS` parts of its logarithm.

    The first part takes all below 10^`LOWEST` as well. Pairs not seen yet, with the match NaN, do not count.
    """
    seen = ~np.isnan(match)
    exponent = np.log10(np.maximum(match, 10.0**LOWEST)).clip(LOWEST, 0)
    kinds = {"clean": seen & clean, "noisy": seen & ~clean}
    return {
        kind: np.histogram(exponent[which], BINS, (LOWEST, 0))[0].tolist() for kind, which in kinds.items()
    }
