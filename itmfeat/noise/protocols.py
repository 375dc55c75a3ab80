"""The protocols: functions from a true correspondence (C,) to a noisy one (C,).

The generators are the legacy numpy ones, because the published index files came from those. All protocols at
caption level draw the same captions at the same seed and ratio; only what these get instead differs.
"""

from collections.abc import Callable

import numpy as np

from itmfeat.errors import DataError, UsageError
from itmfeat.pairs import Ints

Protocol = Callable[[Ints, float, int], Ints]


def generator(seed: int) -> np.random.RandomState:
    """The legacy generator of a seed, which has 32 bits."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"the noise seed must lie in 0..{2**32 - 1}, not {seed}")
    return np.random.RandomState(seed)


def drawn(count: int, ratio: float, random: np.random.RandomState) -> Ints:
    """The first int(ratio * count) of the shuffled numbers below `count`."""
    order = np.arange(count)
    random.shuffle(order)
    return order[: int(ratio * count)]


def ncr(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Caption-level noise of NCR (Huang et al., NeurIPS 2021), (C,) -> (C,).

    int(ratio * C) captions are drawn, and their image ids are shuffled among them. Every image keeps its
    number of captions; a handful of the drawn ones fall back to their own image.
    """
    random = generator(seed)
    noisy = caption_image.copy()
    chosen = drawn(len(noisy), ratio, random)
    moved = noisy[chosen]
    random.shuffle(moved)
    noisy[chosen] = moved
    return noisy


def decl(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Image-level noise of DECL (Qin et al., ACM MM 2022) and RCL, (C,) -> (C,).

    int(ratio * I) images are drawn and permuted among themselves; all captions of an image move together,
    so an image is all right or all wrong. Harder than `ncr` at the same ratio.
    """
    random = generator(seed)
    images = int(caption_image.max()) + 1
    chosen = drawn(images, ratio, random)
    moved = chosen.copy()
    random.shuffle(moved)
    given = np.arange(images)
    given[chosen] = moved
    return given[caption_image]


def derangement(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Like `ncr`, but no drawn caption keeps its image, (C,) -> (C,)."""
    random = generator(seed)
    noisy = caption_image.copy()
    chosen = drawn(len(noisy), ratio, random)
    noisy[chosen] = _deranged(noisy[chosen], random)
    if (noisy[chosen] == caption_image[chosen]).any():
        raise DataError(
            f"no derangement: one image owns most of the {len(chosen)} captions drawn at noise {ratio:g}"
        )
    return noisy


def replacement(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Asymmetric noise, (C,) -> (C,): each drawn caption gets any other image, all equally likely.

    Images then differ in how many captions they have, and some have none. Such a run cannot share a stack
    with runs of another noise.
    """
    random = generator(seed)
    noisy = caption_image.copy()
    chosen = drawn(len(noisy), ratio, random)
    images = int(caption_image.max()) + 1
    if len(chosen) and images < 2:
        raise DataError("there is no other image that a caption could get")
    other = random.randint(0, max(images - 1, 1), len(chosen))
    noisy[chosen] = other + (other >= noisy[chosen])
    return noisy


def cluster(caption_image: Ints, ratio: float, seed: int, labels: Ints) -> Ints:
    """Hard noise: a derangement among the drawn captions whose images share a cluster, (C,) -> (C,).

    `labels` (I,) is the cluster of each image, so a wrong image looks like the right one. Where one image
    owns most of the drawn captions of a cluster, some of them stay: the effective ratio can fall short.
    """
    random = generator(seed)
    noisy = caption_image.copy()
    chosen = drawn(len(noisy), ratio, random)
    of = labels[caption_image[chosen]]
    for members in np.split(chosen[np.argsort(of, kind="stable")], np.cumsum(np.bincount(of))[:-1]):
        noisy[members] = _deranged(noisy[members], random)
    return noisy


def _deranged(own: Ints, random: np.random.RandomState) -> Ints:
    """A shuffle of image ids (N,) in which every place gets another one, as far as there is such a shuffle.

    Each place that kept its id swaps with one where neither side gets its own. There always is one unless
    some id fills more than half of the places, and no swap makes a new fixed point.
    """
    moved = own.copy()
    random.shuffle(moved)
    for place in np.flatnonzero(moved == own):
        if moved[place] != own[place]:  # an earlier swap has moved it already
            continue
        partners = np.flatnonzero((moved != own[place]) & (own != own[place]))
        if len(partners):
            partner = partners[random.randint(len(partners))]
            moved[[place, partner]] = moved[[partner, place]]
    return moved


PROTOCOLS: dict[str, Protocol] = {
    "ncr": ncr,
    "decl": decl,
    "derangement": derangement,
    "replacement": replacement,
}
"""The protocols that need nothing but the correspondence: those that `train --noise-protocol` takes."""
