"""From ranks to recalls, under the protocols that a table is read by."""

import math
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from itmfeat.errors import DataError, unknown
from itmfeat.retrieval.ranking import Ranks, folded_ranks, ranks

PROTOCOLS = ["auto", "1k", "5k", "5x1k", "full"]
FOLD = 1000


class Recalls(TypedDict):
    """One direction: recalls in percent, median and mean rank counted from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


class Standard(TypedDict):
    """What a split has where papers report on it."""

    images: int
    captions: NotRequired[int]  # where there is a fixed number


# The functional form, because one key is no identifier.
Results = TypedDict(
    "Results",
    {
        "protocol": str,
        "split": str,
        "images": int,
        "captions": int,
        "i2t": Recalls,
        "t2i": Recalls,
        "rsum": float,
        "5x1k": NotRequired["Results"],
        "dropped": NotRequired[int],  # captions beyond the first so many of an image
        "standard": NotRequired[Standard],  # where other numbers of images or captions were ranked
        "eccv": NotRequired[dict[str, dict[str, float]]],
        "cxc": NotRequired[dict[str, dict[str, float]]],
        "ensemble": NotRequired[list[str]],  # names of the runs
    },
)


def evaluate(
    image: Tensor,
    text: Tensor,
    caption_image: Tensor,
    protocol: str = "auto",
    split: str = "test",
    standard: Standard | None = None,
    kept: dict[str, Ranks] | None = None,
) -> Results:
    """Recalls of `image` (N, E) and `text` (C, E), caption c being of image `caption_image[c]`.

    `1k` and `5k` rank that many images against each other, `5x1k` is the mean over five consecutive
    folds of 1000 images with their captions, `full` takes any number. `auto` is `1k` for 1000
    images; `5k`, with the `5x1k` result beside it, for 5000; and `full` for the rest.

    `standard` is what the split has in papers. Where other numbers are ranked, the answer has it too, no
    protocol of a fixed size goes, and fewer images or captions are a `subset`. `kept` receives the ranks of
    the queries under the name of each protocol; those of `5x1k` are ranks in the fold.
    """
    kept = {} if kept is None else kept
    if standard is not None and _differs(standard, len(image), len(text)):
        if protocol not in ("auto", "full"):
            raise DataError(refusal(protocol, split, standard, len(image), len(text)))
        fewer = len(image) < standard["images"] or len(text) < standard.get("captions", 0)
        protocol = "subset" if fewer else "full"
        kept[protocol] = ranks(image, text, caption_image)
        return results(kept[protocol], protocol, split) | {"standard": standard}
    automatic, protocol = protocol == "auto", resolve(protocol, len(image), split)
    folded = protocol == "5x1k" or (automatic and protocol == "5k")
    whole, folds = folded_ranks(image, text, caption_image, FOLD if folded else len(image))
    if folded:
        kept["5x1k"] = _unfolded(folds, caption_image)
    if protocol == "5x1k":
        return _folds(folds, split)
    kept[protocol] = whole
    result = results(whole, protocol, split)
    if folded:
        result["5x1k"] = _folds(folds, split)
    return result


def resolve(protocol: str, images: int, split: str = "test") -> str:
    """The protocol that `auto` is for so many images; a `DataError` if a named one needs another number."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if protocol == "auto":
        return {1000: "1k", 5000: "5k"}.get(images, "full")
    wanted = {"1k": 1000, "5k": 5000, "5x1k": 5000}.get(protocol, images)
    if images != wanted:
        raise DataError(f"protocol {protocol} needs exactly {wanted} images, the {split} split has {images}")
    return protocol


def _differs(standard: Standard, images: int, captions: int) -> bool:
    """Whether other images or captions are ranked than in papers."""
    return images != standard["images"] or captions != standard.get("captions", captions)


def refusal(protocol: str, split: str, standard: Standard, images: int, captions: int) -> str:
    """What to say where a protocol does not go with so many images and captions."""
    wanted = " and ".join(f"{number} {what}" for what, number in standard.items())
    return (
        f"protocol {protocol} is for the whole {split} split of {wanted}, and {images} images and {captions} "
        "captions are ranked here: --protocol full takes them and says so"
    )


def results(ranked: Ranks, protocol: str = "full", split: str = "test") -> Results:
    """The numbers of one evaluation from its ranks, (N,) and (C,)."""
    sizes = (len(ranked.i2t), len(ranked.t2i))
    return _results(protocol, split, sizes, _recalls(ranked.i2t), _recalls(ranked.t2i))


def _results(protocol: str, split: str, sizes: tuple[int, int], i2t: Recalls, t2i: Recalls) -> Results:
    """Recalls of both directions with their sum of six, at most 600."""
    rsum = math.fsum((i2t["r1"], i2t["r5"], i2t["r10"], t2i["r1"], t2i["r5"], t2i["r10"]))
    return {
        "protocol": protocol,
        "split": split,
        "images": sizes[0],
        "captions": sizes[1],
        "i2t": i2t,
        "t2i": t2i,
        "rsum": rsum,
    }


def _recalls(rank: Tensor) -> Recalls:
    """Recalls in percent, floor(median) + 1 and mean + 1 of 0-based ranks (X,)."""
    ordered = rank.cpu().sort().values
    middle = ordered[(len(rank) - 1) // 2] + ordered[len(rank) // 2]
    r1, r5, r10 = (100.0 * int((ordered < k).sum()) / len(rank) for k in (1, 5, 10))
    meanr = int(ordered.sum()) / len(rank) + 1
    return {"r1": r1, "r5": r5, "r10": r10, "medr": float(int(middle) // 2 + 1), "meanr": meanr}


def _unfolded(folds: list[Ranks], caption_image: Tensor) -> Ranks:
    """The ranks in the folds, in the order of the split: (N,) and (C,)."""
    t2i = torch.empty_like(caption_image, device=folds[0].t2i.device)
    for place, fold in enumerate(folds):
        t2i[caption_image.to(t2i.device) // FOLD == place] = fold.t2i
    return Ranks(torch.cat([fold.i2t for fold in folds]), t2i)


def _folds(ranked: list[Ranks], split: str) -> Results:
    """`5x1k` of the ranks in each fold: the mean of each metric."""
    folds = [results(fold) for fold in ranked]
    sizes = sum(fold["images"] for fold in folds), sum(fold["captions"] for fold in folds)
    i2t = _mean([fold["i2t"] for fold in folds])
    t2i = _mean([fold["t2i"] for fold in folds])
    return _results("5x1k", split, sizes, i2t, t2i)


def _mean(folds: list[Recalls]) -> Recalls:
    """The mean of each metric."""

    def over(metric: str) -> float:
        return math.fsum(fold[metric] for fold in folds) / len(folds)  # type: ignore[literal-required]

    return Recalls(r1=over("r1"), r5=over("r5"), r10=over("r10"), medr=over("medr"), meanr=over("meanr"))
