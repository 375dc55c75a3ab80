"""Pooling: regions or tokens (..., L, E) with lengths (...) -> one vector (..., E).

`lengths` counts the real vectors of each item, the rest is padding. Everything has a run axis in front.
The maximum is taken where the vectors are projected, in `projected_max`.
"""

import torch
from torch import Tensor


def inside(lengths: Tensor, size: int) -> Tensor:
    """Which of `size` places hold a real vector: (...) -> (..., L) bool."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


def mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the real vectors, (..., L, E) -> (..., E)."""
    if x.shape[-2] == 1:
        return x.squeeze(-2)
    real = inside(lengths, x.shape[-2]).unsqueeze(-1)
    return (x * real).sum(-2) / lengths.clamp(min=1).unsqueeze(-1)


def topk(x: Tensor, lengths: Tensor, k: int) -> Tensor:
    """Mean of the k largest values of each dimension (of all, where there are fewer)."""
    k = min(k, x.shape[-2])
    values = _hide(x, lengths).topk(k, dim=-2).values
    return mean(values, lengths.clamp(max=k))


def weighted(x: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    """Generalised pooling: values of each dimension sorted from the largest, times position weights.

    x (..., L, E), weights (..., longest length) that are zero behind each length -> (..., E). Chen et al.,
    Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021 (arXiv 2011.04305).
    """
    longest = weights.shape[-1]
    values = _hide(x, lengths).sort(dim=-2, descending=True).values[..., :longest, :]
    values = values.masked_fill(~inside(lengths, longest).unsqueeze(-1), 0)
    return (values * weights.unsqueeze(-1)).sum(-2)


def _hide(x: Tensor, lengths: Tensor) -> Tensor:
    """Padding becomes the smallest value, so that it never wins."""
    real = inside(lengths, x.shape[-2]).unsqueeze(-1)
    return x.masked_fill(~real, torch.finfo(x.dtype).min)
