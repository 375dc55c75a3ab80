"""SCC: labels that remember how likely each pair was, carried over restarts of the nets."""

from typing import Annotated

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count, Ratio, Within
from itmfeat.robust.method import SCALE, Labels, Method, Setting, probability


class SCC(Method):
    """Self-refining correspondence correction of CRCL (Qin et al., NeurIPS 2023, arXiv 2310.17468).

        y <- decay * y + (1 - decay) * p,    p = (p_ii of the image + p_ii of the caption) / 2

    at each visit of a pair, p from the softmax of its batch (so it depends on the batch size); labels below
    `floor` are 0. y starts at 1. The nets start anew every `every` epochs, at most `restarts` times, and
    the last round takes the epochs that are left; y is kept. The first `warm` epochs of a round take y as
    it is, since new nets know nothing; in the first round the last of them sets y to p, without the old y.

    The paper's rounds have 5, 5, 5 and 30 epochs, each after 2 of warm-up; the defaults fit 15 in all. As
    there, the last round is at least as long as all before it: restarts that would leave it less are left
    out. A warm-up is at most a round.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        restarts: Count = 2,
        every: Annotated[int, Within(1)] = 2,
        warm: Count = 1,
        decay: Ratio = 0.8,
        floor: Ratio = 0.1,
        scale: float = SCALE,
    ) -> None:
        super().__init__(setting)
        self.rounds = max(0, min(restarts, setting.epochs // (2 * every)))  # before the last
        self.every, self.warm_epochs = every, min(warm, every)
        self.decay, self.floor, self.scale = decay, floor, scale
        self.label = torch.ones(1, len(setting.given), device=setting.device)

    def warm(self, epoch: int) -> bool:
        """Whether an epoch belongs to the warm-up of its round."""
        return epoch - min(epoch // self.every, self.rounds) * self.every < self.warm_epochs

    def restarts(self, epoch: int) -> bool:
        """Whether a round begins with this epoch, but the first one."""
        return epoch % self.every == 0 and 0 < epoch // self.every <= self.rounds

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels:
        """The labels of a batch's pairs, (1, B), which are also kept for their next visit."""
        p, soft = probability(s, self.scale), self.label[:, captions]
        if not self.warm(epoch):
            soft = self.decay * soft + (1 - self.decay) * p
        soft = soft.masked_fill(soft < self.floor, 0)
        self.label[:, captions] = p if epoch == self.warm_epochs - 1 else soft
        return Labels(soft)

    def state(self) -> dict[str, Tensor]:
        """The label of each pair, (1, C)."""
        return {"label": self.label}
