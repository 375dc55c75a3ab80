"""Who goes to which split: drawn for datasets that do not say, kept in proportion by `--limit`."""

from collections import Counter
from dataclasses import replace

import numpy as np

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus.base import Corpus, SplitFractions

DEFAULT = 0.1  # of val and of test, where a dataset has no split


def draw(images: int, fractions: SplitFractions) -> list[str]:
    """A split for each of `images` images; every fraction above 0, train's too, gets an image.

    `RandomState` because its stream is frozen: a seed means the same split under every NumPy.
    """
    sizes = {
        split: max(1, round(fraction * images)) if fraction else 0
        for split, fraction in (("val", fractions.val or 0), ("test", fractions.test or 0))
    }
    if images < 1 + sum(size > 0 for size in sizes.values()):
        raise DataError(f"{images} images are too few to split: give smaller split fractions")
    while sum(sizes.values()) >= images:  # rounding left nothing to train on
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    order = np.random.RandomState(fractions.seed).permutation(images)
    splits = np.full(images, "train", dtype=object)
    splits[order[: sizes["val"]]] = "val"
    splits[order[sizes["val"] : sum(sizes.values())]] = "test"
    return [str(split) for split in splits]


def keep_first(corpus: Corpus, limit: int) -> Corpus:
    """`limit` images of a corpus: the first ones of each split, in proportion to its size.

    Plainly the first N would often be one split alone. Every split keeps an image where
    `limit` allows; the order stays.
    """
    if limit < 1:
        raise UsageError(f"the limit {limit} must be at least 1 image")
    if limit >= len(corpus.image_ids):
        return corpus
    left = _shares(Counter(corpus.image_splits), limit)
    rows = []
    for row, split in enumerate(corpus.image_splits):
        if left[split]:
            left[split] -= 1
            rows.append(row)
    captions = np.flatnonzero(np.isin(corpus.caption_image, rows))
    return replace(
        corpus,
        image_ids=[corpus.image_ids[row] for row in rows],
        image_files=[corpus.image_files[row] for row in rows],
        image_splits=[corpus.image_splits[row] for row in rows],
        captions=[corpus.captions[row] for row in captions],
        caption_ids=[corpus.caption_ids[row] for row in captions],
        caption_image=np.searchsorted(rows, corpus.caption_image[captions]).astype(np.int64),
        origin=f"{corpus.origin}; limited to {limit} of {len(corpus.image_ids)} images",
    )


def _shares(sizes: Counter[str], limit: int) -> dict[str, int]:
    """How many of `limit` places each split gets: proportional, largest remainder, at least one."""
    present = [split for split in SPLITS if sizes[split]]
    exact = {split: limit * sizes[split] / sizes.total() for split in present}
    least = 1 if limit >= len(present) else 0
    shares = {split: max(least, int(exact[split])) for split in present}
    while sum(shares.values()) < limit:
        shares[max(present, key=lambda split: exact[split] - shares[split])] += 1
    while sum(shares.values()) > limit:
        spare = [split for split in present if shares[split] > least]
        shares[max(spare, key=lambda split: shares[split] - exact[split])] -= 1
    return shares
