"""CREAM's labels: two nets split the pairs into clean, hard and noisy ones, which join one after another."""

from collections.abc import Callable

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count, Ratio
from itmfeat.robust.method import Labels, Method, Scores, Setting, probability
from itmfeat.robust.mixture import posterior


class Cream(Method):
    """Co-teaching of CREAM (TIP 2024, code XLearning-SCU/2024-TIP-CREAM).

    After `warm` epochs a mixture of the softmax losses of each net gives it a posterior w in every epoch.
    Clean are pairs that both nets accept (w > 1/2), hard those on which they differ, noisy the others.

        clean:  y = w + (1 - w) P    w of the other net, P of its own
        hard:   y = w + (1 - w) P    w the mean of both, P of its own; left out before `hard_from`
        noisy:  y = P                the mean of both; left out before `noisy_from`

    P is the probability of the pair in the softmax of its batch, mean of both directions. The shares of
    the run from which hard and noisy pairs join, warm-up included, stand for the paper's epochs 10 and 15 of
    40 after its warm-up. There P comes from a pass in evaluation mode over a batch of one kind alone, here
    from the training step itself, and the mixture from losses at the same `scale`, here at 20; and there 1 %
    of the pairs are called unclean where a net accepts all, here none.
    Splits are made from the nets at the beginning of each epoch, so nothing is saved.
    """

    nets = 2
    asks = True

    def __init__(
        self,
        setting: Setting,
        *,
        warm: Count = 2,
        hard_from: Ratio = 0.25,
        noisy_from: Ratio = 0.5,
        scale: float = 14.3,
    ) -> None:
        super().__init__(setting)
        self.warm_epochs, self.scale = warm, scale
        self.hard_epoch, self.noisy_epoch = hard_from * setting.epochs, noisy_from * setting.epochs
        self.posterior: Tensor | None = None  # (2, C)

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """Fit a mixture to the losses of each net."""
        if not self.warm(epoch):
            self.posterior = torch.stack([posterior(losses, "gmm") for losses in scores().softmax])

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """The labels of a batch's pairs and whether they take part, (2, B)."""
        if self.posterior is None:
            return None
        w, p = self.posterior[:, captions], probability(s, self.scale)
        accepted = (w > 0.5).sum(0)  # (B,) nets
        w = torch.where(accepted == 2, w.flip(0), w.mean(0))
        soft = torch.where(accepted == 0, p.mean(0), w + (1 - w) * p)
        late = (accepted == 1) & (epoch < self.hard_epoch) | (accepted == 0) & (epoch < self.noisy_epoch)
        return Labels(soft, (~late).to(w).expand_as(soft))

    def split(self) -> Tensor | None:
        """The pairs that both nets accept, twice: (2, C)."""
        return None if self.posterior is None else (self.posterior > 0.5).all(0).expand(2, -1)
