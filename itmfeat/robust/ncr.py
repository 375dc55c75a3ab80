"""NCR: two nets, each of which splits the training pairs for the other and gives them soft margins."""

from collections.abc import Callable

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count, Ratio
from itmfeat.robust.method import MARGIN, Labels, Method, Scores, Setting, hinge
from itmfeat.robust.mixture import posterior


class NCR(Method):
    """NCR, noisy correspondence rectifier (Huang et al., NeurIPS 2021, code XLearning-SCU/2021-NeurIPS-NCR).

        clean pairs:  y = w + (1 - w) P        noisy pairs:  y = (P_A + P_B) / 2

    After `warm` epochs without labels, each net's hinge losses are split by a Gaussian mixture before each
    epoch: w is the posterior of the OTHER net, and pairs with w > `threshold` are clean. P is what a
    net itself predicts (`predicted`). Noisy pairs are left out of the steps until the share `noisy_from` of
    the epochs is over. Labels become margins by `margin_factor` where the loss has margins.

    The losses take the factor of a pair with its row in both directions. The official code puts that of
    noisy pairs on the wrong axis in one direction and broadcasts those of clean pairs to a matrix. It
    also draws separate clean and noisy batches, and sets 1 % of the pairs apart where all are clean; here
    both kinds share a batch and its negatives.
    """

    nets = 2
    asks = True

    def __init__(
        self, setting: Setting, *, warm: Count = 3, threshold: Ratio = 0.5, noisy_from: Ratio = 0.5
    ) -> None:
        super().__init__(setting)
        self.warm_epochs, self.threshold, self.noisy_from = warm, threshold, noisy_from
        self.posterior: Tensor | None = None  # (2, C) what the other net thinks, none in the warm-up

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """Split the pairs anew, each net for the other."""
        if not self.warm(epoch):
            self.posterior = torch.stack([posterior(values) for values in scores().hinge]).flip(0)

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """Labels of a batch, and which of its pairs the nets learn from."""
        if self.posterior is None:
            return None
        w = self.posterior[:, captions]  # (2, B)
        own = predicted(s)
        trusted = w > self.threshold
        soft = (w + (1 - w) * own).where(trusted, own.mean(0, keepdim=True))
        late = epoch >= self.noisy_from * self.setting.epochs
        return Labels(soft, None if late else trusted.to(soft.dtype))

    def split(self) -> Tensor | None:
        """The pairs that each net is told to be clean."""
        return None if self.posterior is None else self.posterior > self.threshold


def predicted(s: Similarities, margin: float = MARGIN) -> Tensor:
    """How right NCR finds each pair of a batch, relative to its best: (..., B, M) -> (..., B) in [0, 1].

        P_i = [margin - c_i]+ / mean of the largest tenth,    c_i = 1/2 mean_n [margin + s_in - s_ii]+, both

    Means are over the negatives, without other captions of the same image (the official code takes all B
    columns). A batch in which no pair holds its margin has zeros.
    """
    cost = hinge(s, margin) / 2
    left = (margin - cost).clamp(min=0)
    best = left.topk(max(left.shape[-1] // 10, 1), dim=-1).values.mean(-1, keepdim=True)
    return (left / best.clamp(min=1e-12)).clamp(max=1)
