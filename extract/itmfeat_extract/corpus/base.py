"""What every reader returns: images, captions and which belongs to which."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus.inside import open_inside

Opener = Callable[[str], BinaryIO]
"""Opens an image by its name in the corpus; picklable, and called by many threads at once."""


@dataclass(frozen=True)
class SplitFractions:
    """How to make splits that a dataset comes without: seeded, by image.

    `val` and `test` are fractions of the images in [0, 1); what is left is `train`. None is 0.1 for a dataset
    without any split, and else 0.
    """

    val: float | None = 0.0
    test: float | None = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        val, test = self.val or 0, self.test or 0
        if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
            raise UsageError(
                f"the split fractions val={val} and test={test} must each be at least 0 "
                "and together less than 1, so that images are left to train on"
            )
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"the split seed {self.seed} must lie between 0 and {2**32 - 1}")


@dataclass(frozen=True)
class Corpus:
    """A dataset as the extractor sees it. Captions of one image stand together, in image order."""

    name: str
    root: Path  # image_files are relative to it
    image_ids: list[str]  # unique
    image_files: list[str]  # or, with an opener, whatever it knows an image by
    image_splits: list[str]  # one of SPLITS an image
    captions: list[str]
    caption_ids: list[int]  # unique: COCO annotation ids, Karpathy sentids, or a running number
    caption_image: NDArray[np.int64]  # (captions,) row of the image each caption belongs to
    origin: str = ""  # which files were read, how they were split, what was left out: for the log
    opener: Opener | None = None  # where images are no files of their own: shards, tables

    def __post_init__(self) -> None:
        images, captions = len(self.image_ids), len(self.captions)
        if not images or not captions:
            raise DataError(f"{self.name}: no image with a caption found below {self.root}")
        lengths = (len(self.image_files), len(self.image_splits), len(self.caption_ids))
        if lengths != (images, images, captions) or self.caption_image.shape != (captions,):
            raise ValueError("the columns of a corpus differ in length")
        if not set(self.image_splits) <= set(SPLITS):
            raise ValueError(f"a split of a corpus is none of {', '.join(SPLITS)}")
        if len(set(self.image_ids)) != images:
            raise DataError(f"{self.name}: an image stands twice in the annotations")
        if len(set(self.caption_ids)) != captions:
            raise DataError(f"{self.name}: two captions in the annotations have the same id")
        if np.any(np.diff(self.caption_image) < 0):
            raise ValueError("captions must stand in image order")
        if self.caption_image[0] < 0 or self.caption_image[-1] >= images:
            raise ValueError("a caption belongs to no image")

    def open(self, row: int) -> BinaryIO:
        """The bytes of an image as a file; a DataError if there is none, or if it lies outside `root`."""
        name = self.image_files[row]
        return self.opener(name) if self.opener else open_inside(self.root, name)
