"""Similarity-based negative log-likelihood and its neighbours: a binary decision for each pair."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.losses.infonce import MAX_SCALE
from itmfeat.losses.similarity import Similarities


def snll(
    s: Similarities,
    *,
    scale: "float | Tensor" = 10.0,
    bias: float | None = None,
    shift: "float | Tensor" = 0.0,
    link: Literal["sigmoid", "affine"] = "sigmoid",
    reduction: Literal["image", "mean", "balanced"] = "image",
    eps: float = 1e-6,
) -> Tensor:
    """SNLL: each similarity is a binary classification "match or not": (..., B, M) -> (...).

        L = -1/Z sum_ij [y_ij log p_ij + (1 - y_ij) log(1 - p_ij)],    y = 1 annotated, 0 not
        sigmoid: p_ij = sigmoid(scale * s_ij + bias)    affine: p_ij = (1 + s_ij) / 2 in [eps, 1 - eps]

    Ngo, Nguyen and Nguyen, HUIT J. Science 26(2E), DOI 10.62985/j.huit_ojs.vol26.no2E.419. THIS IS A
    RECONSTRUCTION: only the abstract can be read ("a probabilistic binary classification over all pairwise
    similarities"), the formula cannot. We take the Bernoulli likelihood of all pairs with a logistic link;
    `affine` with `mean` is the other literal reading. `image`: Z = B, the sum over a row and the mean over
    rows; then it is SigLIP (arXiv 2303.15343) up to the start of the bias. `mean`: Z = B M, which wants an
    M times larger step. `balanced`: half the mean over matches plus half the mean over the rest.

    `bias` None is -log(M - 1), at which an uninformed model predicts the prior of one match in M. `scale`
    and `shift` (added to the bias) are numbers, or (..., 1, 1) where they are learned; `affine` uses none
    of the three. Its gradient is zero where the clip holds. Confidences weigh matches alone: a wrong
    caption is still a valid negative elsewhere. The pairs are those of `i2t`.
    """
    if link == "affine":
        match = ((1 + s.i2t) / 2).clamp(eps, 1 - eps)
        cost = -match.where(s.positive, 1 - match).log()
    else:
        if isinstance(scale, Tensor):
            scale = scale.clamp(max=MAX_SCALE)
        if bias is None:
            bias = -math.log(max(1, s.i2t.shape[-1] - 1))
        cost = _bernoulli(scale * s.i2t + bias + shift, s.positive)
    cost = s.weight_positives(cost)
    if reduction == "balanced":
        matches, rest = (
            cost.where(mask, 0).sum((-2, -1)) / mask.sum().clamp(min=1) for mask in (s.positive, s.negative)
        )
        return (matches + rest) / 2
    return cost.mean((-2, -1)) if reduction == "mean" else cost.sum(-1).mean(-1)


def siglip(
    s: Similarities, *, scale: "float | Tensor" = 10.0, bias: float = -10.0, shift: "float | Tensor" = 0.0
) -> Tensor:
    """SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343): (..., B, M) -> (...).

        L = -1/B sum_ij log sigmoid(y_ij (scale * s_ij + bias)),    y = +1 annotated, -1 not

    The published start suits batches of 32,000 (bias about -log B); for a batch of 128 see `snll`. Scale and
    bias are learned, the scale on a log axis and at most 100 (the paper has no bound). Confidences weigh
    matches alone. The pairs are those of `i2t`.
    """
    return snll(s, scale=scale, bias=bias, shift=shift)


def pcmepp(
    s: Similarities,
    *,
    scale: "float | Tensor" = 5.0,
    bias: float = 5.0,
    shift: "float | Tensor" = 0.0,
    pseudo: float = 0.0,
) -> Tensor:
    """PCME++ without variances (Chun, ICLR 2024, arXiv 2305.18171): (..., B, M) -> (...).

        L = 1/BM sum_ij [bce(z_ij, y_ij) + pseudo * bce(z_ij, y'_ij)]    over both directions
        z_ij = bias - scale |u_i - v_j|^2 = bias - 2 scale (1 - s_ij)    (10 s - 5 at the start)

    y' also takes as matches all candidates at least as similar as the annotated one; the official weight
    is `pseudo` = 0.1, off here: where all similarities are equal it takes everything for a match. Scale
    and bias are learned, as published, but the scale on a log axis. Confidences weigh matches in the first
    term, and a query's row in the second. The mean over B M pairs wants a larger step than a sum over M.
    """
    if isinstance(scale, Tensor):
        scale = scale.clamp(max=MAX_SCALE)
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        logits = bias + shift - 2 * scale * (1 - similarity)
        cost = s.weight_positives(_bernoulli(logits, s.positive), queries=similarity is s.t2i)
        total = total + cost.mean((-2, -1))
        if pseudo:
            own = similarity.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            cost = _bernoulli(logits, s.positive | (similarity >= own))
            total = total + pseudo * s.weight_pairs(cost.mean(-1)).mean(-1)
    return total


def _bernoulli(logits: Tensor, match: Tensor) -> Tensor:
    """Negative log-likelihood of binary labels given logits, (..., B, M), stable at both ends."""
    return F.softplus(logits.where(~match, -logits))
