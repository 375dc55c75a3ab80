"""Which caption belongs to which image, as data: one array, caption -> image.

Masks, splits, noise and evaluation all follow this array; nothing assumes five captions an image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import SPLITS, DatasetIndex
from itmfeat.errors import DataError, unknown

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """A split: rows of its I images and C captions in the cache, and the correspondence."""

    images: Ints  # (I,) rows in the image feature files
    captions: Ints  # (C,) rows in the text feature files, in image order
    caption_image: Ints  # (C,) position in `images`
    dropped: int = 0  # captions beyond the first `per_image`
    missing: int = 0  # images without features, left out with their captions


def split_pairs(index: DatasetIndex, split: str, per_image: int = 0, missing: Ints | None = None) -> Pairs:
    """The pairs of a split. `per_image` > 0 keeps the first captions of each image, as the field does.

    `missing` are rows of images without features (`FeatureFile.empty`): they and their captions are left out.
    """
    if split not in SPLITS:
        raise unknown("split", split, list(SPLITS))
    images = np.flatnonzero(index.image_split == SPLITS.index(split)).astype(np.int64)
    named = len(images)
    if missing is not None:
        images = np.setdiff1d(images, missing, assume_unique=True)
    position = np.full(index.images, -1, np.int64)
    position[images] = np.arange(len(images))
    captions = np.flatnonzero(position[index.caption_image] >= 0).astype(np.int64)
    caption_image = position[index.caption_image[captions]]
    total = len(captions)
    if per_image:
        keep = rank_in_image(caption_image) < per_image
        captions, caption_image = captions[keep], caption_image[keep]
    if not named and split != "train":
        raise DataError(
            f"{index.name} has no {split} split: extract it into another --cache with "
            f"--{split}-fraction 0.1, which makes one out of training images"
        )
    if not len(images) or len(np.unique(caption_image)) != len(images):
        raise DataError(f"the {split} split of {index.name} is empty or has images without a caption")
    return Pairs(images, captions, caption_image, dropped=total - len(captions), missing=named - len(images))


def rank_in_image(caption_image: Ints) -> Ints:
    """Running number of each caption among its image's captions, (C,)."""
    order = np.argsort(caption_image, kind="stable")
    sorted_images = caption_image[order]
    first = np.searchsorted(sorted_images, sorted_images)
    rank = np.empty_like(caption_image)
    rank[order] = np.arange(len(order)) - first
    return rank


def slot_captions(caption_image: Ints) -> Ints:
    """The caption in each slot when slots are laid out image by image, (C,).

    Correspondences that give every image the same number of captions share this layout: slot s holds
    the same image in all of them and only the caption differs.
    """
    return np.argsort(caption_image, kind="stable")
