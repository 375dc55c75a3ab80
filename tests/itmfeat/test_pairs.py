"""Correspondence as data: splits, first captions, slots."""

import numpy as np
import pytest

from itmfeat.cache.index import DatasetIndex
from itmfeat.cache.schema import Strings
from itmfeat.errors import DataError, UsageError
from itmfeat.noise import ncr
from itmfeat.pairs import rank_in_image, slot_captions, split_pairs

EMPTY = Strings(np.zeros(0, np.uint8), np.zeros(1, np.int64))


def index(image_split: list[int], caption_image: list[int]) -> DatasetIndex:
    return DatasetIndex(
        "toy",
        "digest",
        EMPTY,
        EMPTY,
        np.array(image_split, np.uint8),
        EMPTY,
        np.arange(len(caption_image)),
        np.array(caption_image),
    )


def test_splits_renumber_the_images() -> None:
    found = split_pairs(index([0, 2, 0], [0, 0, 1, 2, 2, 2]), "train")
    assert found.images.tolist() == [0, 2]
    assert found.captions.tolist() == [0, 1, 3, 4, 5]
    assert found.caption_image.tolist() == [0, 0, 1, 1, 1]


def test_first_captions_and_what_was_dropped() -> None:
    found = split_pairs(index([0, 0], [0] * 7 + [1] * 4), "train", per_image=5)
    assert found.captions.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10]
    assert found.dropped == 2


def test_images_without_captions_and_unknown_splits() -> None:
    with pytest.raises(DataError, match="without a caption"):
        split_pairs(index([0, 0], [0, 0]), "train")
    with pytest.raises(DataError, match=r"has no test split: .* --test-fraction 0\.1"):
        split_pairs(index([0], [0]), "test")
    with pytest.raises(UsageError, match="unknown split"):
        split_pairs(index([0], [0]), "dev")


def test_rank_in_image_of_shuffled_captions() -> None:
    assert rank_in_image(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]


def test_slots_hold_the_same_images_under_any_noise() -> None:
    true = np.repeat(np.arange(20), np.random.default_rng(0).integers(1, 7, 20))
    for seed in range(3):
        given = ncr(true, 0.5, seed)
        assert np.array_equal(given[slot_captions(given)], np.sort(true))
