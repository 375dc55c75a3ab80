"""Similarity-based negative log-likelihood."""

import math

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
) -> Tensor:
    """SNLL: each similarity is a binary classification "match or not": (..., B, M) -> (...).

        L = -1/B sum_ij log sigmoid(y_ij * (scale * s_ij + bias)),    y = +1 annotated, -1 not

    Ngo, Nguyen and Nguyen, HUIT J. Science 26(2E). The body of that paper is not publicly readable;
    this is the reading that its abstract supports best: a Bernoulli likelihood over all pairwise
    similarities. With these reductions it equals SigLIP (arXiv 2303.15343) up to the start of the bias:
    None is -log(M - 1), at which an uninformed model predicts the prior of one match in M.

    `scale` and `shift` (added to the bias) are numbers, or (..., 1, 1) where they are learned.
    Confidences weigh the pair's own term: a wrong caption is still a valid negative elsewhere.
    """
    if isinstance(scale, Tensor):
        scale = scale.clamp(max=MAX_SCALE)
    if bias is None:
        bias = -math.log(max(1, s.i2t.shape[-1] - 1))
    logits = scale * s.i2t + bias + shift
    cost = F.softplus(-logits.where(s.positive, -logits))
    if s.confidence is not None:
        own = cost.diagonal(dim1=-2, dim2=-1)
        return cost.sum(-1).add(s.weight_pairs(own) - own).mean(-1)
    return cost.sum(-1).mean(-1)
