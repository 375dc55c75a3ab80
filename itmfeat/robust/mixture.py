"""Two-component mixtures of the losses of a split: which pairs are of the kind that is learned easily."""

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating[Any]]
Kind = Literal["gmm", "bmm"]

EDGE = 1e-4
"""Beta densities are taken in [EDGE, 1 - EDGE], as they may be infinite or zero at 0 and 1."""


def posterior(values: Tensor, kind: Kind = "gmm") -> Tensor:
    """Probability that each pair belongs to the component of smaller loss: (C,) -> (C,), float32.

    The values are scaled to [0, 1] first. "gmm" is the Gaussian mixture of DivideMix (arXiv 2002.07394)
    with the settings of NCR (NeurIPS 2021), "bmm" the beta mixture of Arazo et al. (arXiv 1904.11238).
    Deterministic, on the CPU.

    The component with the wider tails claims the values at both ends, so the posterior of either kind turns
    once, below the smaller mean or above the larger one. Here it stays at its extreme from there on: a
    pair of smaller loss is never less clean. Where no mixture can be fitted, that is for constant values,
    or as soon as one is not finite (a net that diverged), all pairs count as clean.
    """
    x = values.detach().cpu().double().numpy()
    if not len(x) or not np.isfinite(x).all() or x.min() == x.max():
        return torch.ones_like(values, dtype=torch.float32)
    x = (x - x.min()) / (x.max() - x.min())
    found = _gaussian(x) if kind == "gmm" else _beta(x)
    return torch.from_numpy(found).to(values.device, torch.float32)


def _gaussian(x: Floats) -> Floats:
    """Posterior of the Gaussian of smaller mean, (C,) -> (C,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten rounds are all that NCR takes
        mixture.fit(x[:, None])
    means, precisions = mixture.means_[:, 0], mixture.precisions_[:, 0, 0]
    turn = _quotient((means * precisions)[0] - (means * precisions)[1], precisions[0] - precisions[1])
    inside = _until(x, turn, means.min())
    clean: Floats = mixture.predict_proba(inside[:, None])[:, means.argmin()]
    return clean


def _beta(x: Floats, rounds: int = 50, tolerance: float = 1e-5) -> Floats:
    """Posterior of the beta distribution of smaller mean, (C,) -> (C,).

    EM from the best two halves. The M-step matches weighted means and variances, so each round costs a few
    passes over the values; the likelihood need not rise in each, and the rounds end where it falls. The
    usual start, Beta(1, 2) and Beta(2, 1), does not leave its place on narrow clusters.
    """
    x = x.clip(EDGE, 1 - EDGE)
    logs = np.log(np.stack([x, 1 - x]))  # (2, C)
    small = _lower_half(x)
    belongs = np.stack([small, ~small]).astype(np.float64)  # (2, C)
    before = -math.inf
    for _ in range(rounds):
        share, shapes = belongs.mean(1), np.stack([_matched(x, weight) for weight in belongs])  # (2,), (2, 2)
        log_joint = _log_joint(logs, shapes, share)
        log_total = np.logaddexp(*log_joint)
        if log_total.mean() - before < tolerance:
            break
        before = log_total.mean()
        belongs = np.exp(log_joint - log_total)
    means = shapes[:, 0] / shapes.sum(1)
    a, b = shapes[0] - shapes[1]
    inside = _until(x, _quotient(a, a + b), means.min())
    log_joint = _log_joint(np.log(np.stack([inside, 1 - inside])), shapes, share)
    clean: Floats = np.exp(log_joint[means.argmin()] - np.logaddexp(*log_joint))
    return clean


def _quotient(above: float, below: float) -> float:
    """Where the ratio of two densities turns; infinity where it does not, for equal shapes."""
    return above / below if below else math.inf


def _until(x: Floats, turn: float, smaller: float) -> Floats:
    """Values clipped where the posterior turns: from below if under the `smaller` mean, else from above."""
    return x.clip(min=turn) if turn < smaller else x.clip(max=turn)


def _lower_half(x: Floats) -> NDArray[np.bool_]:
    """Which values lie below the cut that explains most of the variance (exact 2-means), (C,) -> (C,)."""
    ordered = np.sort(x)
    below, sums = np.arange(1, len(x)), ordered.cumsum()[:-1]  # (C - 1,) for a cut behind each value
    above = len(x) - below
    between = below * above * np.square(sums / below - (ordered.sum() - sums) / above)
    cut: float = ordered[between.argmax()]
    return x <= cut


def _log_joint(logs: Floats, shapes: Floats, share: Floats) -> Floats:
    """log share_k Beta(x; a_k, b_k) from log x and log(1 - x), (2, C) -> (2, C)."""
    norms = np.array([math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) for a, b in shapes])
    constant: Floats = norms + np.log(share.clip(1e-12))
    return (shapes - 1) @ logs + constant[:, None]


def _matched(x: Floats, weight: Floats) -> Floats:
    """a and b of the beta distribution with the weighted mean and variance of x, (2,).

    Bounded so that an empty component, or one on a single value, keeps finite and positive parameters.
    """
    total = max(float(weight.sum()), 1e-12)
    mean = min(max(float(weight @ x) / total, EDGE), 1 - EDGE)
    variance = max(float(weight @ np.square(x - mean)) / total, 1e-6)
    strength = max(mean * (1 - mean) / variance - 1, 1e-2)
    return np.array([mean * strength, (1 - mean) * strength])
