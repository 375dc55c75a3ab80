"""The features that a configuration names, opened and checked, and the fastest way to fetch them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itmfeat.cache import Cache, FeatureFile, Gather, open_cache
from itmfeat.config import DataConfig, HeadConfig
from itmfeat.errors import DataError
from itmfeat.loader import Source, pooled_source
from itmfeat.pairs import Ints, Pairs, split_pairs


@dataclass(frozen=True)
class Features:
    """The two feature files of a run."""

    cache: Cache
    image: FeatureFile
    text: FeatureFile

    def pairs(self, split: str, captions_per_image: int) -> Pairs:
        """The correspondence of a split."""
        return split_pairs(self.cache.index, split, captions_per_image)

    @property
    def dims(self) -> tuple[int, int]:
        """Length of an image's and a text's vectors."""
        return self.image.dim, self.text.dim

    def means(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Mean vectors of a split's images (I, D) and captions (C, D'), float32."""
        image, text = (
            pooled_source(file, rows)(torch.from_numpy(rows)).vectors.squeeze(1)
            for file, rows in ((self.image, pairs.images), (self.text, pairs.captions))
        )
        return image, text

    def sources(self, head: HeadConfig, images: Ints, captions: Ints) -> tuple[Source, Source]:
        """Fetch image and text vectors of these rows as the heads need them."""
        image_pooling, text_pooling = head.poolings
        return _source(self.image, image_pooling, images), _source(self.text, text_pooling, captions)


def _source(file: FeatureFile, pool: str, rows: Ints) -> Source:
    """Means are taken once where the head allows it; otherwise all vectors are gathered each time."""
    if pool == "mean":
        return pooled_source(file, rows)
    return Gather(file)


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
