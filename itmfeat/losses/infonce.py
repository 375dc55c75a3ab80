"""Softmax contrastive losses."""

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities

MAX_SCALE = 100.0
"""CLIP's bound on a learnable logit scale."""


def log_match(s: Similarities, similarity: Tensor, scale: "float | Tensor") -> Tensor:
    """Log of the softmax probability of the annotated candidate: (..., B, M) -> (..., B).

    Other captions of the same image leave the denominator; a query without a negative has 0.
    """
    logits = (scale * similarity).masked_fill(s.others, -torch.inf)
    return logits.diagonal(dim1=-2, dim2=-1) - logits.logsumexp(-1)


def infonce(s: Similarities, *, scale: "float | Tensor" = 20.0) -> Tensor:
    """InfoNCE in both directions, as in CLIP (arXiv 2103.00020): (..., B, M) -> (...).

        L = 1/2B sum_i [-log softmax_j(scale * s_ij)[i]]    over both directions

    `scale` is the inverse temperature 1/tau: a number, or (..., 1, 1) where it is learned, clamped to
    100. Other captions of the same image leave the denominator.
    """
    if isinstance(scale, Tensor):
        scale = scale.clamp(max=MAX_SCALE)
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        total = total - s.weight_pairs(log_match(s, similarity, scale)).mean(-1) / 2
    return total
