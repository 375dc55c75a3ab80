"""FNE: hinges on drawn negatives, of which probable matches are drawn less often."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities, Statistics, Way
from itmfeat.losses.triplet import triplet
from itmfeat.parameters import Within

Weight = Literal["code", "exp", "linear"]
Cut = Literal["mean", "anchor", "none"]
Probability = Annotated[float, Within(1e-12, 1 - 1e-12)]

MIN_VARIANCE = 1e-6
"""A deviation of 0.001: narrower distributions would judge by the rounding of a cosine."""


def fne(
    s: Similarities,
    *,
    margin: float = 0.2,
    prior: Probability = 1e-4,
    threshold: float = 1e-3,
    tau: float = 0.5,
    weight: Weight = "code",
    cut: Cut = "mean",
    warmup_epochs: int = 1,
    start: int = 200,
) -> Tensor:
    """False-negative elimination (Li et al., ACM MM 2023, arXiv 2308.04380): (..., B, M) -> (...).

        L = 1/B sum_i [margin + s_ik - d_i]+,  k drawn with probability w_ik / sum_n w_in, both directions
        p_in = sigmoid(log N(s_in; match) - log N(s_in; negative) + log prior / (1 - prior))
        w_in = exp(-p_in / 2) ("code"), exp(-p_in / tau) ("exp") or 1 - p_in ("linear"),   p_in > threshold
             = exp(-(s_in - d_i)^2 / 2)                                                    otherwise

    d_i is the direction's own match: with a memory, the query as the heads see it and the candidate as their
    averages do. p is the posterior that an unannotated candidate matches all the same, from `s.statistics`.
    Drawn are negatives above mu_match - margin ("mean"), d_i - margin ("anchor") or any ("none"); where none
    lies above, the hardest. Until `start` matches were seen, p is 0 and d_i stands for mu_match. The first
    `warmup_epochs` epochs take the hardest triplet of the batch and need `s` without a memory.

    "code" is what the official code does: a p of 1 costs a candidate 39 % of its weight, so the draw is
    nearly even among all above the cut and eliminates little. "exp" and "linear" do eliminate. In the code p
    also rises to 1 far below mu_negative where the matches spread more than the negatives; here it is 0.
    The code forgets the statistics each epoch, cuts at -margin until it has some, and sums over the batch.

    Soft margins scale `margin`, but not in the cut of "mean", which belongs to all queries. A query costs
    nothing without a negative, or where all that are left certainly match. The numbers of the draws follow
    from `s.draw_seed` and are the same for all runs of a stack.
    """
    if s.warm(warmup_epochs):
        return triplet(s, margin=margin, warmup_epochs=0)
    numbers = _uniform(s)
    own = torch.arange(s.i2t.shape[-2], device=s.i2t.device).expand(s.i2t.shape[:-1])
    total = torch.zeros((), device=s.i2t.device)
    for place, way in enumerate[Way](("image", "text")):
        match = s.pick(way, own)  # (..., B)
        with torch.no_grad():
            negatives = torch.where(s.positive, -torch.inf, s.i2t if way == "image" else s.t2i)
            dropped = negatives < _lowest(s, negatives, match, margin, cut, start).unsqueeze(-1)
            found = None if s.statistics is None else _posterior(negatives, s.statistics, prior, start)
            weights = _weights_(negatives, match.unsqueeze(-1), found, threshold, tau, weight)
            index, idle = _draw_(weights.masked_fill_(dropped, 0), numbers[place])
        hinge = s.soft_margin(margin) - match + s.pick(way, index)
        total = total + s.weight_pairs(hinge.clamp(min=0).masked_fill(idle, 0)).mean(-1)
    return total


def _uniform(s: Similarities) -> Tensor:
    """Numbers in [0, 1) for the draws of both directions, (2, B); float32 whatever the similarities are."""
    # Not the seed itself: dropout would see the same numbers.
    random = torch.Generator(s.i2t.device).manual_seed((s.draw_seed or 0) ^ 1)
    return torch.rand(2, s.i2t.shape[-2], generator=random, device=s.i2t.device)


def _lowest(s: Similarities, negatives: Tensor, match: Tensor, margin: float, cut: Cut, start: int) -> Tensor:
    """The lowest similarity that may be drawn, (..., B): the hardest negative's where the cut lies higher."""
    hardest = negatives.amax(-1)
    if cut == "none":
        return hardest.clamp(max=torch.finfo(hardest.dtype).min)
    lowest = match - s.soft_margin(margin)
    if cut == "mean" and s.statistics is not None:
        known = (s.statistics.seen >= start).unsqueeze(-1)
        lowest = (s.statistics.mean_match - margin).unsqueeze(-1).where(known, lowest)
    return torch.minimum(hardest, lowest)


def _posterior(negatives: Tensor, statistics: Statistics, prior: float, start: int) -> tuple[Tensor, Tensor]:
    """p of negatives, (..., B, M), 0 where too little was seen; and their distances above mu_negative.

    The log of the ratio of two normal densities is a parabola; in u = s - mu_negative it loses no digits.
    """
    mean_match, var_match, mean_negative, var_negative, seen = (
        value.unsqueeze(-1).unsqueeze(-1) for value in statistics
    )
    var_match, var_negative = var_match.clamp(min=MIN_VARIANCE), var_negative.clamp(min=MIN_VARIANCE)
    gap = mean_match - mean_negative
    square = (1 / var_negative - 1 / var_match) / 2
    level = math.log(prior) - math.log1p(-prior) + (var_negative / var_match).log() / 2
    level = (level - gap.square() / var_match / 2).masked_fill(seen < start, -torch.inf)
    u = negatives - mean_negative
    log_odds = torch.addcmul(gap / var_match, u, square).mul_(u).add_(level)
    return log_odds.sigmoid_(), u


def _weights_(
    negatives: Tensor,
    match: Tensor,
    posterior: tuple[Tensor, Tensor] | None,
    threshold: float,
    tau: float,
    weight: Weight,
) -> Tensor:
    """w of negatives (..., B, M) from their posterior and the match of each query (..., B, 1).

    Overwrites both: to allocate a matrix of 8000 candidates takes longer than to compute it.
    """
    difference = negatives.sub_(match)
    logs = difference.mul_(difference).mul_(-0.5)
    if posterior is not None:
        p, u = posterior
        likely = (p > threshold).logical_and_(u > 0)
        log_p = p.neg_().log1p_() if weight == "linear" else p.mul_(-0.5 if weight == "code" else -1 / tau)
        logs = torch.where(likely, log_p, logs, out=u)
    return logs.exp_()


def _draw_(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """A candidate of each query by its weight, (..., B, M) -> (..., B), and where there is none to draw."""
    sums = weights.cumsum_(-1).contiguous()
    last = sums[..., -1:]
    # The first sum above the number's share. Where any weight is, it exists: numbers have 24 bits, below 1.
    place = torch.searchsorted(sums, last * numbers.unsqueeze(-1), right=True)
    return place.clamp_(max=sums.shape[-1] - 1).squeeze(-1), (last == 0).squeeze(-1)
