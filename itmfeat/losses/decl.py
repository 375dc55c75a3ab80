"""DECL: evidential learning, where similarities are evidence for a Dirichlet over the candidates."""

import torch
from torch import Tensor

from itmfeat.losses.similarity import ABSENT, Similarities

MOST = 30.0
"""Bound of the log evidence, three times the largest at the default tau: e^30 squared fits float32."""


def decl(
    s: Similarities,
    *,
    tau: float = 0.1,
    kl: float = 0.1,
    hinge: float = 0.8,
    margin: float = 0.2,
    decay: float = 0.025,
    floor: int = 5,
    kappa: float | None = None,
) -> Tensor:
    """DECL (Qin et al., ACM MM 2022, code QinYang79/DECL): (..., B, M) -> (...).

        L = 1/B sum_i [sum_j (y_ij - p_ij)^2 + p_ij (1 - p_ij) / (A_i + 1) + kl * KL(Dir(a~_i) || Dir(1))]
            + hinge * sum_i y_i * mean of the n largest [margin + s_in - s_ii]+    over both directions

    Evidence e_ij = exp(s_ij / tau), a = e + 1, A_i = sum_j a_ij, p = a / A, a~ = y + (1 - y) a. The label
    y_ij is `confidence` for the pair itself and 0 for negatives: a pair of y = 0 is a row without a match,
    all of whose evidence should go, and ranks nothing. Between, the squared error has the gradient of its
    mean over y ~ Bernoulli, the KL takes away that share of the pair's evidence, and y weighs the ranking.

    n falls from B - 1 to `floor` as max(B - decay * step, floor); no step is the end. As in the official
    code the ranking is a sum over the batch and the rest a mean: under the mean of both, the KL drowns the
    ranking and hardly anything is learned from cosines. DECL takes tanh of an unbounded similarity in both
    parts: a cosine is bounded already and is taken as it is; a `kappa` makes it tanh(kappa * cos).

    Log evidence is cut at 30, beyond all that a tau of 0.034 or more can reach, so no tau overflows. Other
    captions of the same image are no candidates. A query without a negative costs nothing.
    """
    label = torch.ones_like(s.pair) if s.confidence is None else s.confidence  # (..., B)
    size, candidates = s.i2t.shape[-2:]
    most = floor if s.step is None else max(int(size - decay * s.step), floor)
    hardest = max(1, min(most, candidates - 1))
    similarity = torch.stack((s.i2t, s.t2i))  # (2, ..., B, M)
    if kappa is not None:
        similarity = (kappa * similarity).tanh()
    nearest = similarity.masked_fill(s.positive, ABSENT).topk(hardest, sorted=False).values
    pair = similarity.diagonal(dim1=-2, dim2=-1)
    ranking = (nearest - (pair - margin).unsqueeze(-1)).clamp(min=0).mean(-1)
    evidence = (similarity / tau).clamp(max=MOST).exp().masked_fill(s.others, 0)
    cost = _evidential(s, evidence, label, kl) + hinge * size * label * ranking  # (2, ..., B)
    return s.weigh(cost.masked_fill(s.positive.all(-1), 0)).mean(-1).sum(0)


def _evidential(s: Similarities, evidence: Tensor, label: Tensor, kl: float) -> Tensor:
    """Squared error, variance and KL of each query: evidence (..., B, M), label (..., B) -> (..., B).

    With q = sum_j p_ij^2 the variances add up to (1 - q) / (A + 1) and the squared errors to
    q - 2 y p_ii + y^2. Sums over candidates come before divisions, so few steps are as large as (B, M).
    """
    count = (~s.others).sum(-1)  # (B,) candidates of each query; the others have evidence 0
    gained, own = evidence.sum(-1), evidence.diagonal(dim1=-2, dim2=-1)
    strength = gained + count  # A
    q = (evidence.square().sum(-1) + 2 * gained + count) / strength.square()
    match = (own + 1) / strength
    cost = q - 2 * label * match + label.square() + (1 - q) / (strength + 1)
    taken = torch.zeros_like(evidence).diagonal_scatter(label * own, dim1=-2, dim2=-1)
    return cost + kl * _above_uniform(evidence - taken, count)


def _above_uniform(evidence: Tensor, count: Tensor) -> Tensor:
    """KL of Dir(1 + evidence) from the uniform Dirichlet: (..., B, M) -> (..., B).

    `count` (B,) are the candidates of each row; cells without evidence change nothing. The gradient is
    e_j psi'(1 + e_j) - psi'(A) sum_k e_k, where autograd would have the terms in psi cancel each other.
    """
    e = evidence.detach()
    alpha, gained = e + 1, e.sum(-1)
    strength = gained + count
    value = strength.lgamma() - torch.lgamma(count.to(e)) - alpha.lgamma().sum(-1)
    value = value + (e * alpha.digamma()).sum(-1) - gained * strength.digamma()
    slope = e * alpha.polygamma(1) - (gained * strength.polygamma(1)).unsqueeze(-1)
    return value + (slope * (evidence - e)).sum(-1)  # evidence - e is zero
