"""The split of DECL: a pair is clean where nothing in its batch resembles the query more."""

from collections.abc import Callable

from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.parameters import Count
from itmfeat.robust.method import Labels, Method, Scores, Setting


class Argmax(Method):
    """Split of DECL (Qin et al., ACM MM 2022, code QinYang79/DECL), anew in each epoch after the warm-up.

    y_i = 1 where the pair has the most evidence of its row in e + e^T, e = exp(s / 0.1), else 0. In larger
    batches fewer pairs pass. The paper warms up for 1 to 5 of 20 to 40 epochs. The split is made from the
    nets at the beginning of each epoch, so nothing is saved.
    """

    asks = True

    def __init__(self, setting: Setting, *, warm: Count = 2) -> None:
        super().__init__(setting)
        self.warm_epochs = warm
        self.clean: Tensor | None = None  # (1, C) bool

    def begin(self, epoch: int, scores: Callable[[], Scores]) -> None:
        """Split the training pairs."""
        self.clean = None if self.warm(epoch) else scores().first

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """1 for clean pairs and 0 for the others, (1, B)."""
        return None if self.clean is None else Labels(self.clean[:, captions].to(s.i2t))

    def split(self) -> Tensor | None:
        """The clean pairs of this epoch, (1, C)."""
        return self.clean
