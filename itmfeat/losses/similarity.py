"""What a loss sees: the similarities of a batch and which of them are annotated."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ABSENT = -1e30
"""Stands for -inf under a log-sum-exp that may be empty: there -inf has the gradient NaN, this has zero."""


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

    def run(self, index: Tensor) -> "Similarities":
        """Some runs of a stack, (k, B, M)."""
        confidence = None if self.confidence is None else self.confidence[index]
        return Similarities(self.i2t[index], self.t2i[index], self.positive, confidence, self.epoch)

    def weight_pairs(self, values: Tensor) -> Tensor:
        """Multiply a value of each pair (..., B) by its confidence."""
        return values if self.confidence is None else values * self.confidence

    def weight_positives(self, cost: Tensor, *, queries: bool = False) -> Tensor:
        """Multiply the costs (..., B, M) of annotated cells by the confidence of the cell's caption.

        The captions are the candidates (i2t; those of a memory count fully) or the `queries` (t2i).
        """
        if self.confidence is None:
            return cost
        memory = cost.shape[-1] - cost.shape[-2]
        columns = F.pad(self.confidence, (0, memory), value=1.0).unsqueeze(-2)
        weight = self.confidence.unsqueeze(-1) if queries else columns
        return (cost * weight).where(self.positive, cost)


def similarities(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None = None,
    confidence: Tensor | None = None,
    epoch: int | None = None,
) -> Similarities:
    """Cosines of a batch: image and text (..., B, E), normalised here; image_ids (B,).

    Pairs with equal `image_ids` are positives of each other. Without ids only the diagonal is.
    """
    i2t = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).transpose(-1, -2)
    ids = torch.arange(i2t.shape[-1], device=i2t.device) if image_ids is None else image_ids
    return Similarities(i2t, i2t.transpose(-1, -2), ids.unsqueeze(1) == ids, confidence, epoch)
