"""The ranks of all queries of a split, as a run keeps them for intervals and comparisons."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itmfeat.errors import DataError
from itmfeat.pairs import Ints, Pairs
from itmfeat.retrieval.protocols import FOLD, resolve
from itmfeat.retrieval.ranking import Ranks

RANKS_FILE = "ranks.safetensors"
"""In a run folder: 0-based int32 ranks on the test split, in the order of the split.

`i2t` (N,), the best of any caption of the image, and `t2i` (C,), of the whole split; `5x1k.i2t` and
`5x1k.t2i`, among the 1000 images of the query's fold, where the split has 5000; `caption_image` (C,), the
position of each caption's image; `images` (N,) and `captions` (C,), their rows in the index of the cache.
"""


class Queries(NamedTuple):
    """Ranks of N images and C captions under one protocol, and which of them belong together."""

    i2t: Ints  # (N,) 0-based rank of the best caption of each image
    t2i: Ints  # (C,) 0-based rank of each caption's image
    caption_image: Ints  # (C,) position of each caption's image
    fold: Ints  # (N,) the gallery that an image is ranked in; 0 but for 5x1k


def queries_of(ranks: Ranks, caption_image: Tensor, protocol: str) -> Queries:
    """The queries of `ranks`, which `evaluate` gave for a protocol."""
    i2t, t2i, image = (values.cpu().numpy().astype(np.int64) for values in (*ranks, caption_image))
    return Queries(i2t, t2i, image, np.arange(len(i2t)) // (FOLD if protocol == "5x1k" else len(i2t)))


def to_tensors(ranks: Mapping[str, Ranks], pairs: Pairs) -> dict[str, Tensor]:
    """What `RANKS_FILE` holds, from the ranks under the protocols of an evaluation."""
    rows = {"caption_image": pairs.caption_image, "images": pairs.images, "captions": pairs.captions}
    tensors = {name: torch.from_numpy(value) for name, value in rows.items()}
    for protocol, found in ranks.items():
        folded = "5x1k." if protocol == "5x1k" else ""
        tensors |= {f"{folded}i2t": found.i2t, f"{folded}t2i": found.t2i}
    return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor], protocol: str) -> tuple[str, Queries]:
    """The protocol that is meant and its queries; a `DataError` if the tensors do not hold it."""
    try:
        if protocol != "subset":  # which is what `evaluate` calls fewer than papers have
            protocol = resolve(protocol, len(tensors["images"]))
        folded = "5x1k." if protocol == "5x1k" else ""
        found = Ranks(tensors[f"{folded}i2t"], tensors[f"{folded}t2i"])
        return protocol, queries_of(found, tensors["caption_image"], protocol)
    except KeyError as error:
        raise DataError(f"the ranks of the run lack {error}; train it again") from None
