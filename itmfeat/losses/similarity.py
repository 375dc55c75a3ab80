"""What a loss sees: the similarities of a batch and which of them are annotated."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ABSENT = -1e30
"""Stands for -inf under a log-sum-exp that may be empty: there -inf has the gradient NaN, this has zero."""


Way = Literal["image", "text"]
"""The modality of the queries: images in `i2t`, captions in `t2i`."""


class Statistics(NamedTuple):
    """Normal distributions of the similarities of sure matches and of their hardest negatives, (...) each."""

    mean_match: Tensor
    var_match: Tensor
    mean_negative: Tensor
    var_negative: Tensor
    seen: Tensor  # matches so far, a number


@dataclass(frozen=True)
class Similarities:
    """Cosines of B image-caption pairs with M >= B candidates; candidate i belongs to pair i.

    Leading dimensions (...) are runs of a stack. `positive` marks candidates of the same image as the
    query: the pair itself and its other captions, which are never negatives.
    """

    i2t: Tensor  # (..., B, M) images against captions
    t2i: Tensor  # (..., B, M) captions against images
    positive: Tensor  # (B, M) bool
    confidence: Tensor | None = None  # (..., B) in [0, 1] that a pair is right; None is 1
    epoch: int | None = None  # for losses with a warm-up; None is after it
    step: int | None = None  # of training, for losses that tighten over it; None is the end
    margin_factor: Tensor | None = None  # (..., B) in [0, 1] on the margin of a pair's triplets; None is 1
    weight: Tensor | None = None  # (..., B) of a pair in the step, whatever its confidence; None is 1
    statistics: Statistics | None = None  # over the training so far, for losses that judge by them
    draw_seed: int | None = None  # of losses that draw negatives, one for all runs; None is 0
    picker: Callable[[Way, Tensor], Tensor] | None = None  # where a memory made i2t and t2i without gradient

    @property
    def pair(self) -> Tensor:
        """Similarity of each annotated pair, (..., B)."""
        return self.i2t.diagonal(dim1=-2, dim2=-1)

    @property
    def negative(self) -> Tensor:
        """Candidates that are certainly not annotated for the query, (B, M)."""
        return ~self.positive

    @property
    def others(self) -> Tensor:
        """Other captions of the same image, (B, M): the positives without the pair itself."""
        own = torch.zeros_like(self.positive)
        own.fill_diagonal_(True)
        return self.positive & ~own

    def pick(self, way: Way, index: Tensor) -> Tensor:
        """Similarities of each query to one candidate, (..., B) -> (..., B), with a gradient in any case."""
        if self.picker is not None:
            return self.picker(way, index)
        matrix = self.i2t if way == "image" else self.t2i
        return matrix.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def run(self, index: Tensor) -> "Similarities":
        """Some runs of a stack, (k, B, M)."""
        assert self.picker is None, "a memory belongs to its runs; choose runs before it"
        given = self.statistics
        return replace(
            self,
            i2t=self.i2t[index],
            t2i=self.t2i[index],
            confidence=None if self.confidence is None else self.confidence[index],
            margin_factor=None if self.margin_factor is None else self.margin_factor[index],
            weight=None if self.weight is None else self.weight[index],
            statistics=None if given is None else Statistics(*(value[index] for value in given)),
        )

    def soft_margin(self, margin: float) -> "float | Tensor":
        """The margin of the triplets of each query, (..., B) or one number.

        Query i is image i in `i2t` and caption i in `t2i`, so the factor of a pair goes with its row in both.
        """
        return margin if self.margin_factor is None else margin * self.margin_factor

    def warm(self, epochs: int) -> bool:
        """Whether the batch belongs to a loss's warm-up of so many epochs."""
        return self.epoch is not None and self.epoch < epochs

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply a value of each pair (..., B) by its weight alone, where the confidence is a label."""
        return values if self.weight is None else values * self.weight

    def weight_pairs(self, values: Tensor) -> Tensor:
        """Multiply a value of each pair (..., B) by its confidence and its weight."""
        return self.weigh(values if self.confidence is None else values * self.confidence)

    def weight_positives(self, cost: Tensor, *, queries: bool = False) -> Tensor:
        """Multiply the costs (..., B, M) of annotated cells by confidence and weight of the cell's caption.

        The captions are the candidates (i2t; those of a memory count fully) or the `queries` (t2i).
        """
        if self.confidence is None and self.weight is None:
            return cost
        share = self.weight_pairs(torch.ones_like(self.pair))
        memory = cost.shape[-1] - cost.shape[-2]
        columns = F.pad(share, (0, memory), value=1.0).unsqueeze(-2)
        return (cost * (share.unsqueeze(-1) if queries else columns)).where(self.positive, cost)


def similarities(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None = None,
    confidence: Tensor | None = None,
    epoch: int | None = None,
    step: int | None = None,
) -> Similarities:
    """Cosines of a batch: image and text (..., B, E), normalised here; image_ids (B,).

    Pairs with equal `image_ids` are positives of each other. Without ids only the diagonal is.
    """
    # The products are normalised, not the embeddings: a batch has several times fewer of them.
    i2t = (image @ text.transpose(-1, -2)) * _inverse_norm(image) * _inverse_norm(text).transpose(-1, -2)
    ids = torch.arange(i2t.shape[-1], device=i2t.device) if image_ids is None else image_ids
    return Similarities(i2t, i2t.transpose(-1, -2), ids.unsqueeze(1) == ids, confidence, epoch, step)


def _inverse_norm(vectors: Tensor) -> Tensor:
    """1 / |v| of vectors (..., B, E), as (..., B, 1); a zero vector keeps the cosine 0."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norm.clamp(min=1e-12).reciprocal()
