"""Triplet ranking losses."""

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities


def triplet(s: Similarities, *, margin: float = 0.2, hardest: bool = True, warmup_epochs: int = 1) -> Tensor:
    """Hinge triplets of VSE++ (Faghri et al., BMVC 2018, arXiv 1707.05612): (..., B, M) -> (...).

        sum:      L = 1/B sum_i sum_n [margin + s_in - s_ii]+    over both directions
        hardest:  L = 1/B sum_i max_n [margin + s_in - s_ii]+    over both directions

    The hardest negative alone collapses from a random start, so the first `warmup_epochs` epochs take
    the sum (Chen et al., arXiv 2011.04305). The official code sums over the batch; dividing by B keeps
    one learning rate for all losses. Soft margins scale `margin` pair by pair (NCR). A query without a
    negative in the batch costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        violation = (similarity - (s.pair - s.soft_margin(margin)).unsqueeze(-1)).clamp(min=0)
        violation = violation.masked_fill(s.positive, 0)
        cost = violation.amax(-1) if hardest and not s.warm(warmup_epochs) else violation.sum(-1)
        total = total + s.weight_pairs(cost).mean(-1)
    return total
