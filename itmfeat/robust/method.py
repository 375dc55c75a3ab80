"""What a method of robust training is: soft labels of the training pairs, for any loss.

A method belongs to one run, which may have two nets (co-teaching). It sees the given correspondence, the
frozen features and how the nets score the pairs; never the true correspondence. Its labels, in [0, 1], become
the confidences of a batch's pairs or the factors of their margins, as the loss can use them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.losses.infonce import log_match

Means = tuple[Tensor, Tensor]
"""Mean features of images (I, D) and captions (C, D')."""

SCALE = 20.0  # of the softmax by which pairs are scored, 1 / 0.05
MARGIN = 0.2  # of the hinges by which pairs are scored
TAU = 0.1  # of the evidence by which pairs are scored


@dataclass(frozen=True)
class Setting:
    """What a method may look at when it is made."""

    given: Tensor  # (C,) the image that each caption of the training split is annotated with
    epochs: int
    device: torch.device
    features: Callable[[], Means]
    """Reads the mean frozen features of the split's images (I, D) and captions (C, D'), float32, once."""


@dataclass(frozen=True)
class Scores:
    """How n nets see each training pair, in evaluation mode and shuffled batches; each (n, C)."""

    hinge: Tensor  # mean over the batch's negatives of [MARGIN + s_in - s_ii]+, sum of both directions
    softmax: Tensor  # -log p_ii at SCALE, mean of both directions
    first: Tensor  # bool: no negative is as similar as the pair, by the evidence of both directions

    def of(self, nets: list[int]) -> "Scores":
        """Those of some nets."""
        return Scores(self.hinge[nets], self.softmax[nets], self.first[nets])

    def blank(self, count: int) -> "Scores":
        """An empty table for all captions of a split, (n, count)."""
        return Scores(*(value.new_zeros(len(value), count) for value in self._all()))

    def put(self, captions: Tensor, part: "Scores") -> None:
        """Write the scores (n, B) of a batch into the table, at the places `captions` (n, B)."""
        for table, values in zip(self._all(), part._all(), strict=True):
            table.scatter_(1, captions, values)

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hinge, self.softmax, self.first


def _log_matched(s: Similarities) -> Tensor:
    """Mean of log p_ii over both directions, (..., B)."""
    return (log_match(s, s.i2t, SCALE) + log_match(s, s.t2i, SCALE)) / 2


def matched(s: Similarities) -> Tensor:
    """How likely each pair is in its batch: geometric mean of p_ii of both directions, (..., B) in [0, 1]."""
    return _log_matched(s).exp()


def probability(s: Similarities, scale: float = SCALE) -> Tensor:
    """The arithmetic mean of the same, as methods take it for a label: (..., B) in [0, 1]."""
    return (log_match(s, s.i2t, scale).exp() + log_match(s, s.t2i, scale).exp()) / 2


def hinge(s: Similarities, margin: float = MARGIN) -> Tensor:
    """Mean hinge of each pair over the batch's negatives, sum of both directions, (..., B)."""
    total = torch.zeros_like(s.pair)
    for similarity in (s.i2t, s.t2i):
        violation = (margin + similarity - s.pair.unsqueeze(-1)).clamp(min=0)
        total = total + violation.where(s.negative, 0).sum(-1)
    return total / s.negative.sum(-1).clamp(min=1)


def scored(s: Similarities) -> Scores:
    """Scores of the pairs of a batch, (..., B); they serve NCR (hinge), CREAM (softmax) and DECL (first).

    DECL adds the evidence e + e^T, e_ij = exp(s_ij / 0.1), which is s in both directions for cosines.
    """
    evidence = (s.i2t / TAU).exp() + (s.t2i / TAU).exp()
    best = evidence.masked_fill(s.positive, 0).amax(-1)
    return Scores(hinge(s), -_log_matched(s), evidence.diagonal(dim1=-2, dim2=-1) > best)


def margin_factor(soft: Tensor) -> Tensor:
    """NCR's exponential soft margin as a factor of the margin: labels y in [0, 1] -> (10^y - 1) / 9."""
    return (torch.pow(10.0, soft) - 1) / 9


@dataclass(frozen=True)
class Labels:
    """Of the pairs of a batch."""

    soft: Tensor  # (n, B) in [0, 1]: the label of each pair
    weight: Tensor | None = None  # (n, B) 0 leaves a pair out of the step; None is 1


class Method:
    """A method that labels nothing; others override what they need."""

    nets = 1
    asks = False  # whether `begin` ever asks how the nets score the pairs
    warm_epochs = 0  # before the first labels

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def warm(self, epoch: int) -> bool:
        """Whether an epoch belongs to the warm-up: a loss with a warm-up of its own stays in it."""
        return epoch < self.warm_epochs

    def restarts(self, epoch: int) -> bool:
        """Whether the nets start anew before this epoch."""
        return False

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """Before each epoch. `scores` makes a pass over the training split when it is called."""

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """Labels for a batch of pairs with similarities (n, B, B), without a gradient; None is 1 for all.

        `captions` (B,) are their places in the split, by which a method finds what it keeps of them.
        """
        return None

    def split(self) -> Tensor | None:
        """(n, C) bool: the pairs taken for clean in this epoch; None where the method does not decide."""
        return None

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds, of fixed shapes; a restart writes into them."""
        return {}
