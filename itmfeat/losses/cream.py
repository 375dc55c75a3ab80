"""CREAM: InfoNCE whose target moves from a doubtful pair to negatives that resemble the query."""

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities

SMALLEST = 1e-6
"""Keeps the shares of a row without a similar negative at zero, as in the official code."""


def cream(s: Similarities, *, scale: float = 14.3, floor: float | None = None) -> Tensor:
    """InfoNCE with soft targets of CREAM (TIP 2024, code XLearning-SCU/2024-TIP-CREAM): (..., B, M) -> (...).

        L = -1/2B sum_i sum_j t_ij log p_ij    over both directions,    p_i = softmax_j(scale * s_ij)
        t_ii = y_i,    t_in = (1 - y_i) [s_in]+ / sum_m [s_im]+    where that reaches `floor`, else 0

    The soft label y_i is `confidence`; n and m are negatives, which may match a query whose own pair is
    wrong. Targets are constant to autograd, and what `floor` takes away is not given to others, so a pair
    of y = 0 without a likely match costs nothing. y = 1 is InfoNCE. `scale` is 1/tau, tau = 0.07 rounded.

    `floor` None stands for the mean label of the batch, (...); the official threshold is the mean label of
    each of the three parts of the split. Both are high: in most batches no negative reaches them and the
    loss is InfoNCE weighted by y. 0 spreads every doubt. Left out: the code's exceptions (never a spread
    for clean pairs in the first 10 epochs; no threshold where over 85 % are clean). It sums the directions
    and divides by raw similarities, which must not be negative. Other captions of the same image leave the
    softmax. A query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        log_p = (scale * similarity).masked_fill(s.others, -torch.inf).log_softmax(-1)
        match = log_p.diagonal(dim1=-2, dim2=-1)
        cost = -match if s.confidence is None else -s.confidence * match
        if s.confidence is not None:
            target = _spread(s, similarity.detach(), s.confidence, floor)
            cost = cost - (target * log_p.masked_fill(s.positive, 0)).sum(-1)
        total = total + s.weigh(cost).mean(-1) / 2
    return total


def _spread(s: Similarities, similarity: Tensor, label: Tensor, floor: float | None) -> Tensor:
    """The targets of negatives, (..., B, M), from the labels (..., B) of the pairs."""
    resemblance = similarity.clamp(min=0).masked_fill(s.positive, 0)
    share = resemblance / (resemblance.sum(-1, keepdim=True) + SMALLEST)
    target = (1 - label).unsqueeze(-1) * share
    least = label.mean(-1)[..., None, None] if floor is None else floor
    return target.masked_fill(target < least, 0)
