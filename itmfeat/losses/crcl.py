"""CRCL: a contrastive loss between InfoNCE and a bounded cost, by how far each pair is believed."""

import torch
from torch import Tensor

from itmfeat.losses.infonce import log_match
from itmfeat.losses.similarity import Similarities


def crcl(s: Similarities, *, scale: float = 20.0, weight: float = 5.0) -> Tensor:
    """Active complementary loss of CRCL (Qin et al., NeurIPS 2023, arXiv 2310.17468): (..., B, M) -> (...).

        L = 1/B sum_i [-y_i log p_ii + weight * sum_n tan p_in / (sum_k tan p_ik)^(1 - y_i)]

    over both directions; p_i = softmax_j(scale * s_ij), n the negatives, k the negatives and the pair. The
    soft label y_i is `confidence`. y = 1 is InfoNCE (twice ours, which is the mean of the directions) plus
    `weight` times `rcl-tan`; y = 0 leaves weight * (1 - tan p_ii / sum_k tan p_ik), which is bounded and so
    hardly follows a wrong caption, but not zero: the pair stays as long as the model finds it likely.

    `scale` is 1/tau, tau = 0.05; 5 is the factor of the official code, which takes exp(s / tau) without
    subtracting the largest. Other captions of the same image leave the softmax. As the p of a query add up
    to 1, the sum of the tangents lies in [1, tan 1], so its power and its gradient are safe for every y. A
    query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    doubt = 0.0 if s.confidence is None else 1 - s.confidence  # (..., B)
    for similarity in (s.i2t, s.t2i):
        match = log_match(s, similarity, scale)
        tangents = (scale * similarity).masked_fill(s.others, -torch.inf).softmax(-1).tan()
        negative = tangents.masked_fill(s.positive, 0).sum(-1)
        bounded = negative / tangents.sum(-1) ** doubt
        cost = weight * bounded - (1 - doubt) * match
        total = total + s.weigh(cost).mean(-1)
    return total
