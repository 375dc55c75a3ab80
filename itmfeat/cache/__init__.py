"""The cache of frozen features: the contract between the extractor and everything after it.

A folder a dataset: `dataset.h5`, `image/BACKBONE.h5`, `text/BACKBONE.h5`.
"""

from itmfeat.cache.folder import Cache, describe, find_cache, open_cache, verify
from itmfeat.cache.gather import Gather, Ragged, Resident, widened
from itmfeat.cache.index import SPLITS, DatasetIndex, read_index, write_index
from itmfeat.cache.ranges import quantize
from itmfeat.cache.reader import FeatureFile, holds
from itmfeat.cache.writer import FeatureSpec, FeatureWriter

__all__ = [
    "SPLITS",
    "Cache",
    "DatasetIndex",
    "FeatureFile",
    "FeatureSpec",
    "FeatureWriter",
    "Gather",
    "Ragged",
    "Resident",
    "describe",
    "find_cache",
    "holds",
    "open_cache",
    "quantize",
    "read_index",
    "verify",
    "widened",
    "write_index",
]
