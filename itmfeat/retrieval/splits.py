"""The evaluation of a split of a dataset: whether it is the field's, and what of it was left out."""

import torch
from torch import Tensor

from itmfeat.cache import DatasetIndex
from itmfeat.errors import unknown
from itmfeat.pairs import Pairs
from itmfeat.retrieval import eccv
from itmfeat.retrieval.protocols import PROTOCOLS, Results, Standard, evaluate
from itmfeat.retrieval.ranking import Ranks

# Images and captions of the test splits that papers report on, five captions an image.
STANDARD: dict[str, Standard] = {
    "flickr8k": {"images": 1000, "captions": 5000},
    "flickr30k": {"images": 1000, "captions": 5000},
    "coco": {"images": 5000, "captions": 25000},
}


def evaluate_split(
    image: Tensor,
    text: Tensor,
    pairs: Pairs,
    index: DatasetIndex,
    split: str = "test",
    protocol: str = "auto",
    kept: dict[str, Ranks] | None = None,
) -> Results:
    """Evaluate the images (I, E) and captions (C, E) of a split, as `evaluate` does, or by "eccv".

    The answer has the number of captions that the first-so-many rule dropped. A test split with other
    numbers than `STANDARD`, or of which images could not be read, is never called `1k` or `5k`. `kept` is
    that of `evaluate`; "eccv" has an order of its own and keeps none.
    """
    known = [*PROTOCOLS, "eccv"]
    if protocol not in known:
        raise unknown("protocol", protocol, known)
    if protocol == "eccv":
        result = eccv.evaluate(image, text, pairs, index, split)
    else:
        caption_image = torch.from_numpy(pairs.caption_image).to(image.device)
        whole: Standard = {"images": len(pairs.images) + pairs.missing}
        standard = STANDARD.get(index.name, whole) if split == "test" else whole
        result = evaluate(image, text, caption_image, protocol, split, standard, kept)
    result["dropped"] = pairs.dropped
    return result
