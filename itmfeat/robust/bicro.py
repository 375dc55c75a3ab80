"""BiCro: soft labels from how well a pair agrees with trusted pairs in frozen uni-modal features."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count, Ratio, Within
from itmfeat.robust.consistency import ratio_consistency, rescaled, spaced, trusted
from itmfeat.robust.method import Labels, Method, Scores, Setting


class BiCro(Method):
    """BiCro (Yang et al., CVPR 2023, code xu5zhao/BiCro), its labels found once on the frozen features.

    After `warm` epochs without labels, the share `anchors` of the pairs with the smallest softmax loss is
    trusted, and evenly spaced ones of them, at most `memory`, judge all pairs: the ratios of
    `ratio_consistency`, divided by their lower quartile over that memory. Trusted pairs get y = 1, labels up
    to `floor` become 0.

    The division is ours: a ratio of similarities in two unlike spaces is far below 1 for right pairs too
    (0.4 in the median on Flickr8k, which the floor would remove). Other differences: one net, not two;
    anchors of the whole split and not of each batch, found once; a warm-up on all pairs, not on the 30 %
    of each batch with the smallest losses. The official code writes the ratios of all pairs to the sorted
    places of those that are not anchors, so most labels land on other pairs; here each stays with its own.
    """

    asks = True
    consistency = staticmethod(ratio_consistency)
    quantile = 0.25  # of the memory's own scores, where labels reach 1

    def __init__(
        self,
        setting: Setting,
        *,
        warm: Count = 3,
        anchors: Ratio = 0.1,
        floor: Ratio = 0.5,
        memory: Annotated[int, Within(2)] = 4096,
    ) -> None:
        super().__init__(setting)
        self.warm_epochs, self.floor = warm, floor
        self.anchors, self.memory = anchors, memory
        self.known = torch.zeros((), dtype=torch.bool)
        self.soft = torch.ones(len(setting.given), device=setting.device)

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """The labels of all pairs, at the end of the warm-up."""
        if self.warm(epoch) or self.known:
            return
        loss = scores().softmax.mean(0)  # (C,)
        if loss.isfinite().all():  # else the net diverged and can trust no pair: all stay 1
            self.soft.copy_(self.judged(trusted(loss, self.anchors)))
        self.known.fill_(True)

    def judged(self, anchors: Tensor) -> Tensor:
        """Soft labels (C,) given the trusted pairs (K,)."""
        memory = spaced(anchors, self.memory)
        setting = self.setting
        score = self.consistency(setting.features(), setting.given, memory, setting.device)
        soft = rescaled(score, score[memory], self.quantile)
        soft[anchors] = 1
        return soft.masked_fill(soft <= self.floor, 0)

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """What was found for these pairs, the same for each net."""
        if self.warm(epoch):
            return None
        return Labels(self.soft[captions].expand(len(s.i2t), -1))

    def split(self) -> Tensor | None:
        """Pairs whose label is not 0."""
        return (self.soft > 0).unsqueeze(0) if self.known else None

    def state(self) -> dict[str, Tensor]:
        """The labels, which are found once."""
        return {"known": self.known, "soft": self.soft}
