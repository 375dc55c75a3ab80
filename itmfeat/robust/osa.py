"""OSA: weights of the pairs from a frozen cross-modal pair of backbones."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.errors import UsageError
from itmfeat.losses import Similarities
from itmfeat.robust.method import Labels, Means, Method, Setting

PEAK = 0.5**0.5
"""Where x^2 (1 - x^2) is largest; it is 1/4 there."""


class OSA(Method):
    """OSA, one-step anti-noise (arXiv 2410.01944, code leolee99/OSA), with weights that never change.

        w = 4 x^2 (1 - x^2),    x = [cos_i - mean cos of mismatched pairs]+ / its largest of the split

    cos_i is the cosine of a pair's mean frozen features, in the joint space of a pair such as CLIP. No
    warm-up. "peak" is the published shape: largest at x = 0.71 and 0 at x = 1, so the most similar pair of
    all counts for nothing. "rising" stays at 1 beyond the peak. The factor 4 (ours) makes the largest
    weight 1. The official code takes the largest similarity of the batch, here it is that of the split,
    and its offset from random inputs, here from mismatched pairs.

    What the frozen pair knows of image and text is supervision that methods without it do not have.
    """

    def __init__(self, setting: Setting, *, shape: Literal["rising", "peak"] = "rising") -> None:
        super().__init__(setting)
        above = excess(setting.features(), setting.given.cpu()).clamp(min=0)
        x = above / above.max()
        weight = (4 * x.square() * (1 - x.square())).clamp(max=1)
        if shape == "rising":
            weight = weight.masked_fill(x >= PEAK, 1)
        self.soft = weight.to(setting.device)

    def labels(self, s: Similarities, captions: Tensor, epoch: int) -> Labels | None:
        """The weights of these pairs, the same for each net."""
        return Labels(self.soft[captions].expand(len(s.i2t), -1))


def excess(features: Means, given: Tensor) -> Tensor:
    """Cosine of each given pair above the mean of mismatched ones, (C,); a UsageError without a joint space.

    `features` are (I, D) and (C, D), `given` (C,) holds the image of each caption. Given pairs of a joint
    space stand out even among 80 % wrong ones; those of unrelated spaces hardly differ from mismatched ones.
    """
    dims = [x.shape[1] for x in features]
    need = "osa weighs pairs by a frozen cross-modal pair such as clip-b32, but these"
    if dims[0] != dims[1]:
        raise UsageError(f"{need} images have {dims[0]} dimensions and texts {dims[1]}; use bicro or repair")
    shuffled = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(0))]
    wrong = _cosines(features, shuffled)[shuffled != given]
    above = _cosines(features, given) - wrong.mean()
    # A fifth of the spread, and beyond what a split of this size shows by chance.
    least = max(0.2, 4 * (2 / len(given)) ** 0.5)
    if len(wrong) < 2 or not above.mean() > least * wrong.std():
        raise UsageError(f"{need} images and texts share no space; use bicro or repair")
    return above


def _cosines(features: Means, images: Tensor, block: int = 65536) -> Tensor:
    """Cosine of each caption with one image, (C,)."""
    image, text = features
    starts = range(0, len(images), block)
    parts = [F.cosine_similarity(image[images[i : i + block]], text[i : i + block]) for i in starts]
    return torch.cat(parts)
