"""REPAIR: soft labels from the rank correlation of distances to a memory of trusted pairs."""

from typing import Annotated

from itmfeat.parameters import Count, Ratio, Within
from itmfeat.robust.bicro import BiCro
from itmfeat.robust.consistency import rank_consistency
from itmfeat.robust.method import Setting


class Repair(BiCro):
    """In the manner of REPAIR (arXiv 2403.08224); A RECONSTRUCTION, only the abstract could be read.

    It states the mechanism: soft labels are rank correlations between a pair's distances to a memory of
    clean features in either modality. The rest is ours. Anchors are found as in `BiCro`; `memory` of them,
    evenly spaced, judge all pairs by Spearman's coefficient (`rank_consistency`), divided by its
    median over that memory and clamped to [0, 1], so that a typical trusted pair has 1 and one that agrees no
    better than chance 0. Labels up to `floor` become 0, by default none. Trusted pairs get 1. Its second
    part, which replaces one half of a mismatched pair by the nearest of the memory, is left out.
    """

    consistency = staticmethod(rank_consistency)
    quantile = 0.5

    def __init__(
        self,
        setting: Setting,
        *,
        warm: Count = 3,
        anchors: Ratio = 0.1,
        floor: Ratio = 0.0,
        memory: Annotated[int, Within(2)] = 1024,
    ) -> None:
        super().__init__(setting, warm=warm, anchors=anchors, floor=floor, memory=memory)
