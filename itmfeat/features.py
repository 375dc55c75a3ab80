"""The features that a configuration names, opened and checked, and where they stay during training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmfeat import residency
from itmfeat.cache import Cache, FeatureFile, Gather, Resident, open_cache
from itmfeat.config import DataConfig, HeadConfig
from itmfeat.errors import DataError, Note, silent
from itmfeat.loader import Means, Source
from itmfeat.pairs import Ints, Pairs, split_pairs


@dataclass(frozen=True)
class Features:
    """The two feature files of a run."""

    cache: Cache
    image: FeatureFile
    text: FeatureFile

    def pairs(self, split: str, captions_per_image: int) -> Pairs:
        """The correspondence of a split, without the images that have no features."""
        return split_pairs(self.cache.index, split, captions_per_image, self.image.empty)

    @property
    def missing(self) -> str:
        """A sentence on the images that have no features; empty if all have."""
        rows = self.image.empty
        captions = int(np.isin(self.cache.index.caption_image, rows).sum())
        return (
            f"{len(rows)} of {len(self.image)} images could not be read at extraction: they and their "
            f"{captions} captions are left out"
            if len(rows)
            else ""
        )

    @property
    def dims(self) -> tuple[int, int]:
        """Length of an image's and a text's vectors."""
        return self.image.dim, self.text.dim

    def means(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Mean vectors of a split's images (I, D) and captions (C, D'), float32."""
        return Means(self.image, pairs.images).table, Means(self.text, pairs.captions).table

    def sources(
        self,
        head: HeadConfig,
        images: Ints,
        captions: Ints,
        device: torch.device,
        resident: str = "disk",
        note: Note = silent,
    ) -> tuple[Source, Source]:
        """Fetch image and text vectors of these rows as the heads need them.

        Of a mean-pooled side the means alone are kept, in memory or on the device. Where the vectors of the
        others stay, `resident` says (`itmfeat.residency`).
        """
        sides = {"image": (self.image, images), "text": (self.text, captions)}
        pooled = {kind: pool == "mean" for kind, pool in zip(sides, head.poolings, strict=True)}
        places = residency.choose(self.needs(head, images, captions), resident, device, note)
        image, text = (_source(*side, pooled[kind], places[kind], device) for kind, side in sides.items())
        return image, text

    def needs(self, head: HeadConfig, images: Ints, captions: Ints) -> dict[str, residency.Need]:
        """What these rows take, as the heads need them."""
        rows = {"image": (self.image, images), "text": (self.text, captions)}
        return {
            kind: _need(*side, pool == "mean")
            for (kind, side), pool in zip(rows.items(), head.poolings, strict=True)
        }

    def verify(self) -> None:
        """Compare every byte of both files with its checksums; a DataError for the first damage."""
        for file in (self.image, self.text):
            file.check()


def _need(file: FeatureFile, rows: Ints, pooled: bool) -> residency.Need:
    """Memory that the features of some rows take."""
    if pooled:
        return residency.Need(4 * len(rows) * file.dim, means=True)
    width = sum(file.extents[name].row_bytes for name in ("features", "scales") if name in file.extents)
    return residency.Need(int(file.lengths(rows).sum()) * width)


def _source(file: FeatureFile, rows: Ints, pooled: bool, place: str, device: torch.device) -> Source:
    where = device if place == "gpu" else torch.device("cpu")
    if pooled:
        return Means(file, rows, where)
    if place in ("pages", "disk"):
        return Gather(file, mapped=place == "pages")
    return Resident(file, rows, where)


def open_features(
    path: Path, image_backbone: str | None = None, text_backbone: str | None = None
) -> Features:
    """Open a cache and one backbone of each kind: the named one, or the only one."""
    cache = open_cache(path)
    return Features(cache, cache.open("image", image_backbone), cache.open("text", text_backbone))


def data_of(features: Features) -> dict[str, Any]:
    """The `data` section of a configuration."""
    return {
        "dataset": features.cache.index.name,
        "dataset_digest": features.cache.index.digest,
        "image_backbone": features.image.path.stem,
        "image_digest": features.image.digest,
        "text_backbone": features.text.path.stem,
        "text_digest": features.text.digest,
    }


def reopen(path: Path, data: DataConfig) -> Features:
    """The very features that a run was configured with; a DataError if the cache holds others now."""
    features = open_features(path, data.image_backbone, data.text_backbone)
    found = data_of(features)
    for key in ("dataset_digest", "image_digest", "text_digest"):
        if found[key] != getattr(data, key):
            what = key.removesuffix("_digest")
            raise DataError(f"{path} holds other {what} features than this run was made with")
    return features
