"""Cross entropies that bear wrong labels, on the softmax over the batch."""

import math

import torch
from torch import Tensor

from itmfeat.losses.infonce import log_match
from itmfeat.losses.similarity import Similarities


def sce(
    s: Similarities, *, alpha: float = 0.1, beta: float = 1.0, scale: float = 20.0, floor: float = 1e-4
) -> Tensor:
    """Symmetric cross entropy (Wang et al., ICCV 2019, arXiv 1908.06112): (..., B, M) -> (...).

        L = 1/2B sum_i [-alpha log p_ii - beta log(floor) (1 - p_ii)]    over both directions

    with p_i = softmax_j(scale * s_ij). The second term is the reverse cross entropy -sum_j p_ij log y_ij
    with log 0 := log(floor) = -9.2, as the official code clips the labels. alpha, beta are its CIFAR-10
    setting; 1, 0 is InfoNCE. The paper classifies images; a query's classes are here the candidates of
    the batch. Other captions of the same image leave the softmax. A query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        log_p = log_match(s, similarity, scale)
        cost = -alpha * log_p + beta * math.log(floor) * torch.expm1(log_p)
        total = total + s.weight_pairs(cost).mean(-1) / 2
    return total


def gce(s: Similarities, *, q: float = 0.7, scale: float = 20.0) -> Tensor:
    """Generalised cross entropy (Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836): (..., B, M) -> (...).

        L = 1/2B sum_i (1 - p_ii^q) / q,    p_i = softmax_j(scale * s_ij), over both directions

    q in (0, 1]: towards 0 it is InfoNCE, at 1 the mean absolute error 1 - p_ii. The truncated variant of
    the paper is left out: it needs a state for each sample. Other captions of the same image leave the
    softmax. A query without a negative costs nothing.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        cost = -torch.expm1(q * log_match(s, similarity, scale)) / q
        total = total + s.weight_pairs(cost).mean(-1) / 2
    return total
