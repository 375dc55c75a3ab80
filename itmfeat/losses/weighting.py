"""Losses of metric learning that weigh pairs, with several matches to a query."""

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.losses.similarity import ABSENT, Similarities


def ms(
    s: Similarities, *, alpha: float = 2.0, beta: float = 50.0, level: float = 0.5, eps: float = 0.1
) -> Tensor:
    """Multi-similarity loss (Wang et al., CVPR 2019, arXiv 1904.06627): (..., B, M) -> (...).

        L = 1/B sum_i  1/alpha log(1 + sum_k exp(-alpha (s_ik - level)))
                     + 1/beta  log(1 + sum_n exp(beta (s_in - level)))    over both directions

    k runs over the matches (the pair and other captions of its image) less similar than the hardest
    negative plus `eps`, n over the negatives more similar than the farthest match less `eps`. The paper
    prints level = 1, its code has 0.5. Queries are images and captions in turn; the paper has one modality.
    Confidences weigh the sum over matches. A query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        known = similarity.detach()
        farthest = known.masked_fill(s.negative, torch.inf).amin(-1, keepdim=True)
        hardest = known.masked_fill(s.positive, -torch.inf).amax(-1, keepdim=True)
        # Negated, so that a net that diverged shows: a comparison with NaN is false.
        matches = s.positive & ~(known >= hardest + eps)
        negatives = s.negative & ~(known <= farthest - eps)
        pull = F.softplus(_logsumexp(-alpha * (similarity - level), matches)) / alpha
        push = F.softplus(_logsumexp(beta * (similarity - level), negatives)) / beta
        total = total + (s.weight_pairs(pull) + push).mean(-1)
    return total


def circle(s: Similarities, *, margin: float = 0.4, scale: float = 80.0) -> Tensor:
    """Circle loss (Sun et al., CVPR 2020, arXiv 2002.10857): (..., B, M) -> (...).

        L = 1/B sum_i log(1 + sum_n exp(scale w_n (s_in - m)) sum_k exp(-scale w_k (s_ik - 1 + m)))
        w_n = [s_in + m]+    w_k = [1 + m - s_ik]+    m = margin, over both directions

    k are the matches (the pair and other captions of its image), n the negatives. The weights are constant
    to autograd, as in the paper's gradient. margin = 0.4 and scale = 80 are its setting for retrieval; for
    faces it has 0.25 and 256. A query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        w_n = (similarity.detach() + margin).clamp(min=0)
        w_k = (1 + margin - similarity.detach()).clamp(min=0)
        push = _logsumexp(scale * w_n * (similarity - margin), s.negative)
        pull = _logsumexp(-scale * w_k * (similarity - 1 + margin), s.positive)
        total = total + s.weight_pairs(F.softplus(push + pull)).mean(-1)
    return total


def _logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over the last axis where `mask` holds, (..., B, M) -> (..., B); very low where never."""
    return values.masked_fill(~mask, ABSENT).logsumexp(-1)
