"""Project every vector, keep the largest value of each dimension: the costly part of region heads.

Of all projected vectors, (K, B, L, E), only one an item and dimension survives, so none is kept for the way
back. The gradient of a weight column is a weighted sum of the B input vectors that won it, read by an
embedding bag, where a product would go over all B L vectors again. Runs go one after another, so that the
projections of one stay in the processor's cache.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.heads.pooling import inside


class _ProjectedMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, source: list[int], weight: Tensor, bias: Tensor
    ) -> Tensor:
        hidden = ~inside(lengths, x.shape[2]).unsqueeze(-1)  # (N, B, L, 1)
        padded = bool(hidden.any())
        best, place = [], []
        for run, which in enumerate(source):
            y = x[which] @ weight[run]  # (B, L, E)
            if padded:
                y.masked_fill_(hidden[which], torch.finfo(y.dtype).min)
            value, index = y.max(1)
            best.append(value + bias[run])
            place.append(index)
        ctx.source = source
        ctx.save_for_backward(x, lengths, torch.stack(place))
        return torch.stack(best)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        x, lengths, place = ctx.saved_tensors
        grad = grads[0].float()
        items, size, dim = x.shape[1:]
        first = size * torch.arange(items, device=x.device).unsqueeze(1)  # (B, 1) of vectors
        weight = x.new_empty(len(grad), dim, grad.shape[-1])
        for run, which in enumerate(ctx.source):
            share = grad[run] * (lengths[which] > 0).unsqueeze(1)  # an empty item has nothing to learn from
            rows = (place[run] + first).t().contiguous()  # (E, B)
            won = F.embedding_bag(
                rows, x[which].flatten(0, 1), per_sample_weights=share.t().contiguous(), mode="sum"
            )
            weight[run] = won.t()
        return None, None, None, weight, grad.sum(1)


def projected_max(x: Tensor, lengths: Tensor, source: list[int], weight: Tensor, bias: Tensor) -> Tensor:
    """max_r (W x_r + b) over the real vectors of each item: (N, B, L, D) -> (K, B, E).

    `lengths` (N, B) counts the real vectors, weight (K, D, E), bias (K, E); run k takes
    input `source[k]` of the N. Inputs get no gradient: they are frozen features.
    """
    return _ProjectedMax.apply(x, lengths, source, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
