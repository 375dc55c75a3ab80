"""ECCV Caption and CxC: the captions of COCO's test images that fit more images than their own.

ECCV Caption (Chun et al., arXiv 2204.03359) asks 1,261 images and 1,332 captions for all that people
and machines found to fit; CxC (Parekh et al., arXiv 2004.15020) adds pairs that people rated alike.
Both ground truths are read from the data of the package `eccv-caption`, and scored here: its own loops
take the same ranks as lists of Python integers, and fold COCO by the full ranking of all 5,000 images.

Two of the captions in ECCV Caption are none of the first five of their images. They count among the
relevant ones and are never found, here as in the package, so that numbers stay comparable.
"""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itmfeat.cache import DatasetIndex
from itmfeat.errors import DataError, MissingPackageError
from itmfeat.pairs import Ints, Pairs
from itmfeat.retrieval import protocols
from itmfeat.retrieval.protocols import Results
from itmfeat.retrieval.ranking import first
from itmfeat.retrieval.relevance import Relevance, longest, score

METRICS = {"eccv": ("map_at_r", "r_precision", "r1"), "cxc": ("r1", "r5", "r10")}
"""What papers report of each."""


class CocoTest(NamedTuple):
    """COCO's test split in the order of the package: thousands of images are the folds of 1K."""

    image_id: Ints  # (5000,)
    caption_id: Ints  # (25000,)
    caption_image: Ints  # (25000,) position in `image_id`


def evaluate(image: Tensor, text: Tensor, pairs: Pairs, index: DatasetIndex, split: str) -> Results:
    """`5k` and `5x1k` of images (5000, E) and captions (25000, E), with `eccv` and `cxc` beside them.

    The split is known by its COCO ids, in any order; a DataError if it is not the whole of Karpathy's test.
    """
    data = _data()
    test = coco_test(data)
    images, captions = _order(test, pairs, index, split)
    image, text = image[images.to(image.device)], text[captions.to(text.device)]
    result = protocols.evaluate(image, text, torch.from_numpy(test.caption_image), "auto", split)
    truth = {name: ground_truth(data, name, test) for name in METRICS}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in METRICS}
    for way, queries, gallery in (("i2t", image, text), ("t2i", text, image)):
        lists = first(queries, gallery, max(longest(truth[name][way]) for name in METRICS)).cpu()
        for name, metrics in METRICS.items():
            scores = score(lists, truth[name][way], len(gallery))
            found[name][way] = {key: scores[key] for key in ("queries", *metrics)}  # type: ignore[literal-required]
    result["eccv"], result["cxc"] = found["eccv"], found["cxc"]
    return result


def _data() -> Path:
    """The data folder of the package, which need not be imported for it."""
    found = importlib.util.find_spec("eccv_caption")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError("protocol eccv needs eccv-caption: pip install 'itmfeat[eccv]'")
    return Path(found.submodule_search_locations[0]) / "data"


def coco_test(data: Path) -> CocoTest:
    """Ids of the test split, from the data folder of the package."""
    file = data / "coco_test_ids.npy"
    try:
        caption_id = np.load(file, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(file) from error
    image_of = _read(data, "original_caption_to_image")
    own = np.array([image_of[caption][0] for caption in caption_id.tolist()])
    # Captions of an image stand together; images in the order in which they are met.
    _, at, which = np.unique(own, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(at))
    return CocoTest(own[np.sort(at)], caption_id, place[which])


def ground_truth(data: Path, name: str, test: CocoTest) -> dict[str, Relevance]:
    """What is relevant to the images ("i2t") and captions ("t2i") of the test split by eccv or cxc."""
    image = {int(key): place for place, key in enumerate(test.image_id)}
    caption = {int(key): place for place, key in enumerate(test.caption_id)}
    return {
        "i2t": _relevance(_read(data, f"{name}_image_to_caption"), image, caption),
        "t2i": _relevance(_read(data, f"{name}_caption_to_image"), caption, image),
    }


def _relevance(truth: dict[int, list[int]], query: dict[int, int], item: dict[int, int]) -> Relevance:
    """Ids as positions; an item outside the split, of which several may be asked for, below 0."""
    rows = [(query[key], item.get(other, -1 - other)) for key, others in truth.items() for other in others]
    pairs = torch.tensor(rows, dtype=torch.int64)
    return Relevance(pairs[:, 0], pairs[:, 1])


def _read(data: Path, name: str) -> dict[int, list[int]]:
    """A ground truth of the package: relevant ids by the id of the query."""
    file = data / f"{name}.json"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(file) from error
    return {int(key): [int(other) for other in others] for key, others in content.items()}


def _damaged(file: Path) -> DataError:
    return DataError(f"{file} is missing or damaged: pip install --force-reinstall eccv-caption")


def _order(test: CocoTest, pairs: Pairs, index: DatasetIndex, split: str) -> tuple[Tensor, Tensor]:
    """Where the images (5000,) and captions (25000,) of the package stand in the split."""
    names = [index.image_id[int(row)] for row in pairs.images]
    image_id = np.array([int(name) if name.isdecimal() and len(name) < 13 else -1 for name in names])
    caption_id = index.caption_id[pairs.captions]
    images, captions = np.argsort(image_id), np.argsort(caption_id)
    whole = np.array_equal(image_id[images], np.sort(test.image_id)) and np.array_equal(
        caption_id[captions], np.sort(test.caption_id)
    )
    if whole:
        images = images[np.argsort(np.argsort(test.image_id))]
        captions = captions[np.argsort(np.argsort(test.caption_id))]
        whole = np.array_equal(pairs.caption_image[captions], images[test.caption_image])
    if not whole:
        inside = np.isin(image_id, test.image_id)[pairs.caption_image]
        have = np.isin(caption_id[inside], test.caption_id).sum()
        raise DataError(
            "protocol eccv is for all 25000 captions of COCO's Karpathy test split, known by COCO's ids, and "
            f"the {split} split of {index.name} has {have} of them among {len(caption_id)}: extract coco "
            "with dataset_coco.json, and rank the first five captions of an image (--captions 5)"
        )
    return torch.from_numpy(images), torch.from_numpy(captions)
