"""TAL: the triplet alignment loss of RDE."""

import torch
from torch import Tensor

from itmfeat.losses.similarity import ABSENT, Similarities


def tal(s: Similarities, *, margin: float = 0.1, tau: float = 0.015) -> Tensor:
    """Triplet alignment loss of RDE (Qin et al., CVPR 2024, arXiv 2308.09911): (..., B, M) -> (...).

        L = 1/B sum_i [margin - sum_k alpha_ik s_ik + tau log sum_n exp(s_in / tau)]+    both directions

    alpha_i = softmax of s_ik / tau over the matches k (the pair and other captions of its image), constant
    to autograd; n are the negatives. An upper bound of the hardest triplet that reaches it as tau -> 0
    (the difference is at most tau log(M - 1)) but whose gradient spreads over all hard negatives, so one
    wrong negative does not decide the step. The official code clamps the inner sum at 1e36, where a
    log-sum-exp needs no clamp, and sums over the batch. Soft margins scale `margin`. A query without a
    negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        logits = similarity / tau
        attention = logits.detach().masked_fill(s.negative, -torch.inf).softmax(-1)
        match = (attention * similarity).sum(-1)
        negative = tau * logits.masked_fill(s.positive, ABSENT).logsumexp(-1)
        cost = (s.soft_margin(margin) - match + negative).clamp(min=0)
        total = total + s.weight_pairs(cost).mean(-1)
    return total
