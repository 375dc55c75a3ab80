"""From embeddings to recalls: search, exact ranks, and the protocols that a table is read by.

Letters in shapes: N images, C captions, E embedding dim, Q queries, G gallery. Similarity is the
inner product, so embeddings are expected normalised, as the heads give them.

**Ranks are exact.** They equal a stable descending argsort of the similarity matrix: of two equal
scores the lower gallery index comes first, wherever the positive stands. A head that maps all to
one point therefore scores chance (rSum 2.0 for 1000 images of five captions), never 100; and a NaN
counts as ahead of every positive, so a diverged head ranks last.

**Where FAISS is used, and where not.** `search` is FAISS. `ranks` is not: both directions need the
same N x C products, which one pass shares, while FAISS multiplies once for each direction before it
keeps its lists. Measured in one run on two busy CPU cores, in matrix products of that size (5000 x
25000 x 1024, then 1000 x 5000 x 512): the pass takes 1.5 and 1.7, MedR and MeanR included; the two
searches take 2.7 and 6.2 at k = 10, 6.7 and 22 at k = 1000, and leave queries still to be counted
(tests/benchmarks/bench_retrieval.py --faiss).
"""

import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from itmfeat.errors import DataError, UsageError, unknown

PROTOCOLS = ["auto", "1k", "5k", "5x1k", "full"]
FOLD = 1000
FAISS_GPU_MAX_K = 2048
# Scores held at once, 1 GiB of float32: COCO 5K fits, and is multiplied once for both directions.
HELD_SCORES = 2**28
# Scores compared at once: few enough for the masks to stay in the processor's cache.
COMPARED_SCORES = 2**22


class Ranks(NamedTuple):
    """0-based int64 ranks: `i2t` (N,), the best of any caption of the image, and `t2i` (C,)."""

    i2t: Tensor
    t2i: Tensor


class Recalls(TypedDict):
    """One direction: recalls in percent, median and mean rank counted from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


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
    },
)


# --- search ---


def search(
    queries: Tensor, gallery: Tensor, k: int, device: "torch.device | str | None" = None
) -> tuple[Tensor, Tensor]:
    """The k best of `gallery` (G, E) for each of `queries` (Q, E): scores and ids (Q, min(k, G)).

    Scores descend; equal scores of one list stand by ascending id. The work is done in float32 on
    `device`, or where the queries live: by FAISS, or by torch where FAISS is absent or cannot serve
    that device.
    """
    if k < 1:
        raise UsageError(f"cannot search for the best {k}: ask for at least 1")
    device = queries.device if device is None else torch.device(device)
    queries, gallery = _float32(queries, device), _float32(gallery, device)
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise DataError(
            "the embeddings hold NaN or infinite values, so they cannot be searched: "
            "the head diverged, train it again with a lower learning rate"
        )
    k = min(k, len(gallery))
    faiss = faiss_library()
    if faiss is not None and _faiss_serves(faiss, device, k):
        return _by_id_where_equal(*_faiss_top(faiss, queries, gallery, k))
    return _by_id_where_equal(*_torch_top(queries, gallery, k))


@cache
def faiss_library() -> ModuleType | None:
    """FAISS, or None where it is not installed."""
    with warnings.catch_warnings():
        # SWIG's generated types name no module, of which Python 3.12 and later complain on import.
        warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
        try:
            return importlib.import_module("faiss")
        except (ImportError, RuntimeError):  # RuntimeError: a CUDA wheel that misses its libraries
            return None


def _faiss_serves(faiss: ModuleType, device: torch.device, k: int) -> bool:
    """Whether this FAISS can search on `device`; a CPU build must not pull tensors off a GPU."""
    if device.type == "cuda":
        return k <= FAISS_GPU_MAX_K and bool(faiss.get_num_gpus())
    return device.type == "cpu"


def _faiss_top(faiss: ModuleType, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k of (Q, E) against (G, E) by a flat FAISS index, as scores and ids (Q, k)."""
    index: Any = faiss.IndexFlatIP(gallery.shape[1])
    if queries.device.type == "cuda":
        number = queries.device.index or 0
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    index.add(gallery.cpu().numpy())
    scores, ids = index.search(queries.cpu().numpy(), k)
    return torch.from_numpy(scores).to(queries.device), torch.from_numpy(ids).to(queries.device)


def _torch_top(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k of (Q, E) against (G, E) by blocked matrix products, as scores and ids (Q, k)."""
    rows = max(1, HELD_SCORES // len(gallery))
    with _full_precision(queries.device):
        lists = [(block @ gallery.T).topk(k, dim=1) for block in torch.split(queries, rows)]
    return torch.cat([top.values for top in lists]), torch.cat([top.indices for top in lists])


def _by_id_where_equal(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder lists (Q, k) by descending score, then by ascending id."""
    ids, order = ids.sort(dim=1)
    scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, ids.gather(1, by_score)


# --- ranks ---


def ranks(image: Tensor, text: Tensor, caption_image: Tensor) -> Ranks:
    """Exact ranks of `image` (N, E) and `text` (C, E), caption c being of image `caption_image[c]`.

    An image may have any number of captions, in any order, but at least one. Computed in float32 on
    the device of `image`, at most `HELD_SCORES` scores at a time.
    """
    device = image.device
    image, text = _float32(image, device), _float32(text, device)
    caption_image = caption_image.to(device, torch.int64)
    _check_pairs(len(image), len(text), caption_image)
    scores = _Scores(image, text)
    # Products take all threads, the counting one: its steps last a millisecond each, and on a busy
    # machine threads wait longer than that for each other.
    with _full_precision(device), _threads(1):
        i2t, own = _image_ranks(scores, caption_image)
        return Ranks(i2t, _caption_ranks(scores, own, caption_image))


def _check_pairs(images: int, captions: int, caption_image: Tensor) -> None:
    """Refuse a `caption_image` (C,) unless it fits the captions and leaves no image without one."""
    if len(caption_image) != captions or not captions:
        raise DataError(f"{captions} text embeddings do not fit {len(caption_image)} captions")
    if caption_image.min() < 0 or caption_image.max() >= images:
        raise DataError(f"a caption belongs to an image outside the {images} that are evaluated")
    bare = int((caption_image.bincount(minlength=images) == 0).sum())
    if bare:
        raise DataError(f"{bare} of {images} images have no caption, so they cannot be ranked")


class _Scores:
    """The similarity matrix (N, C), handed out in chunks of rows, as often as asked for.

    Equal vectors get equal scores, which a matrix product does not promise: it rounds differently
    at the edges of its tiles, so copies of a vector may come out a last bit apart, and a tie with
    them. Hence only distinct vectors are multiplied, and their scores handed to all copies.
    """

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.row_of = _distinct(image)  # (U, E), (N,)
        self.text, self.column_of = _distinct(text)  # (V, E), (C,)
        blocks = math.ceil(len(self.image) * len(self.text) / HELD_SCORES)
        self.step = math.ceil(len(self.image) / blocks)
        self.threads = torch.get_num_threads()
        self.held: Tensor | None = None

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ids of images (n,) and their scores (n, C), until each image had its turn."""
        size = max(1, COMPARED_SCORES // len(self.column_of))
        for start in range(0, len(self.image), self.step):
            product = self._product(start)
            inside = (self.row_of >= start) & (self.row_of < start + self.step)
            for rows in torch.split(inside.nonzero()[:, 0], size):
                yield rows, self._expand(product, self.row_of[rows] - start)

    def _product(self, start: int) -> Tensor:
        """Scores (step, V) of distinct vectors; held for the second pass if there are no others."""
        if self.held is not None:
            return self.held
        with _threads(self.threads):
            product = self.image[start : start + self.step] @ self.text.T
        if self.step == len(self.image):
            self.held = product
        return product

    def _expand(self, product: Tensor, row: Tensor) -> Tensor:
        """The rows `row` (n,) of a product (step, V), with a column for each caption: (n, C)."""
        if len(self.image) == len(self.row_of):  # all distinct: side by side, so a view will do
            scores = product[int(row[0]) : int(row[-1]) + 1]
        else:
            scores = product[row]
        return scores if len(self.text) == len(self.column_of) else scores[:, self.column_of]


def _distinct(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The U distinct rows of `vectors` (X, E), as (U, E), and which of them each row is, (X,)."""
    rows = vectors.cpu().numpy()
    # One opaque item a row: rows are compared as bytes, so that even NaN equals itself.
    items = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
    _, first, which = np.unique(items, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return vectors, torch.arange(len(rows), device=vectors.device)
    index = torch.from_numpy(first).to(vectors.device)
    return vectors[index], torch.from_numpy(which).to(vectors.device)


def _image_ranks(scores: _Scores, caption_image: Tensor) -> tuple[Tensor, Tensor]:
    """i2t ranks (N,), and the score of each caption with its own image (C,), met on the way."""
    images, captions = len(scores.row_of), len(caption_image)
    column = torch.arange(captions, device=caption_image.device)
    i2t = caption_image.new_empty(images)
    own = torch.empty(captions, device=caption_image.device)
    for rows, block in scores.chunks():
        row_of = caption_image.new_full((images,), -1).index_copy_(0, rows, column[: len(rows)])
        mine = (row_of[caption_image] >= 0).nonzero()[:, 0]  # (P,) captions of these images
        row = row_of[caption_image[mine]]  # (P,) the row in this block that each belongs to
        score = own[mine] = block[row, mine]
        # The best of each image, and the first caption that reaches it; a NaN reaches nothing.
        score = score.masked_fill(score.isnan(), -torch.inf)
        best = score.new_full((len(rows),), -torch.inf).scatter_reduce_(0, row, score, "amax")
        reached = score == best[row]
        first = torch.full_like(rows, captions)
        first.scatter_reduce_(0, row[reached], mine[reached], "amin")
        i2t[rows] = _ahead(block, best, first, column, torch.ones_like(rows))
    return i2t.clamp_(max=captions - 1), own


def _caption_ranks(scores: _Scores, own: Tensor, caption_image: Tensor) -> Tensor:
    """t2i ranks (C,) of captions that score `own` (C,) with their images `caption_image` (C,)."""
    t2i = torch.zeros_like(caption_image)
    for rows, block in scores.chunks():
        here = torch.zeros_like(scores.row_of).index_fill_(0, rows, 1)[caption_image]  # (C,)
        t2i += _ahead(block.T, own, caption_image, rows, here)
    return t2i.clamp_(max=len(scores.row_of) - 1)


def _ahead(scores: Tensor, positive: Tensor, position: Tensor, ids: Tensor, itself: Tensor) -> Tensor:
    """How many of the `scores` (Q, G) stand before the `positive` (Q,) of their row, as (Q,).

    Those are greater scores, NaN, and equal scores whose id, of `ids` (G,), is below the `position`
    (Q,) of the positive. `itself` (Q,) is 1 where the positive is one of these scores, else 0.
    """
    mask, ones = torch.empty_like(scores), scores.new_ones(len(ids))
    # A product with ones counts several times faster than a sum of booleans, and as exactly: a
    # chunk is far below the 2^24 to which float32 counts.
    at_most = torch.mv(torch.le(scores, positive[:, None], out=mask), ones)
    below = torch.mv(torch.lt(scores, positive[:, None], out=mask), ones)
    ahead = len(ids) - at_most.long()
    tied = (at_most > below + itself).nonzero()[:, 0]
    equal = scores[tied] == positive[tied, None]
    ahead[tied] += (equal & (ids < position[tied, None])).sum(dim=1)
    return ahead


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use so many threads of the CPU."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def _float32(vectors: Tensor, device: torch.device) -> Tensor:
    """`vectors` (X, E) as contiguous float32 on `device`, without gradient or negative zeros."""
    return vectors.detach().to(device, torch.float32).contiguous() + 0.0


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in true float32: TF32 and bfloat16 merge scores that differ, which moves recalls."""
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


# --- protocols ---


def evaluate(
    image: Tensor, text: Tensor, caption_image: Tensor, protocol: str = "auto", split: str = "test"
) -> Results:
    """Recalls of `image` (N, E) and `text` (C, E), caption c being of image `caption_image[c]`.

    `1k` and `5k` rank that many images against each other, `5x1k` is the mean over five consecutive
    folds of 1000 images with their captions, `full` takes any number. `auto` is `1k` for 1000
    images; `5k`, with the `5x1k` result beside it, for 5000; and `full` for the rest.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    images = len(image)
    automatic = protocol == "auto"
    if automatic:
        protocol = {1000: "1k", 5000: "5k"}.get(images, "full")
    wanted = {"1k": 1000, "5k": 5000, "5x1k": 5000}.get(protocol, images)
    if images != wanted:
        raise DataError(f"protocol {protocol} needs exactly {wanted} images, the {split} split has {images}")
    if protocol == "5x1k":
        return _folds(image, text, caption_image, split)
    result = results(ranks(image, text, caption_image), protocol, split)
    if automatic and protocol == "5k":
        result["5x1k"] = _folds(image, text, caption_image, split)
    return result


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


def _folds(image: Tensor, text: Tensor, caption_image: Tensor, split: str) -> Results:
    """`5x1k` of (N, E), (C, E), (C,): each metric's mean over folds of 1000 consecutive images."""
    caption_image = caption_image.to(text.device)
    folds = []
    for start in range(0, len(image), FOLD):
        mine = ((caption_image >= start) & (caption_image < start + FOLD)).nonzero()[:, 0]
        fold = ranks(image[start : start + FOLD], text[mine], caption_image[mine] - start)
        folds.append(results(fold))
    i2t = _mean([fold["i2t"] for fold in folds])
    t2i = _mean([fold["t2i"] for fold in folds])
    return _results("5x1k", split, (len(image), len(text)), i2t, t2i)


def _mean(folds: list[Recalls]) -> Recalls:
    """The mean of each metric."""

    def over(metric: str) -> float:
        return math.fsum(fold[metric] for fold in folds) / len(folds)  # type: ignore[literal-required]

    return Recalls(r1=over("r1"), r5=over("r5"), r10=over("r10"), medr=over("medr"), meanr=over("meanr"))
