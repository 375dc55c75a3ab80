"""The simplest method: one net splits the training pairs by their losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count, Ratio
from itmfeat.robust.method import Labels, Method, Scores, Setting
from itmfeat.robust.mixture import Kind, posterior


class Split(Method):
    """Small losses are clean: the simplest split of the training pairs (Arazo et al., arXiv 1904.11238).

    After `warm` epochs without labels, w is the posterior of the smaller component of a `mixture` of the
    pairs' scores, fitted anew before each epoch. Labels are w, or w > `threshold` if not `soft`. One net
    chooses its own pairs here, so its errors can confirm themselves: NCR lets another net choose.
    """

    asks = True

    def __init__(
        self,
        setting: Setting,
        *,
        warm: Count = 3,
        score: Literal["softmax", "hinge"] = "softmax",
        mixture: Kind = "gmm",
        threshold: Ratio = 0.5,
        soft: bool = True,
    ) -> None:
        super().__init__(setting)
        self.warm_epochs, self.score, self.mixture = warm, score, mixture
        self.threshold, self.soft = threshold, soft
        self.posterior: Tensor | None = None  # (n, C), none in the warm-up

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """The posterior of each pair, found anew."""
        if not self.warm(epoch):
            found = scores()
            loss = found.softmax if self.score == "softmax" else found.hinge
            self.posterior = torch.stack([posterior(values, self.mixture) for values in loss])

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """The posterior of these pairs, or what it decides."""
        if self.posterior is None:
            return None
        w = self.posterior[:, captions]
        return Labels(w if self.soft else (w > self.threshold).float())

    def split(self) -> Tensor | None:
        """Pairs whose posterior is above the threshold."""
        return None if self.posterior is None else self.posterior > self.threshold
