"""Exact ranks and exact lists, blockwise; for ranks both directions share the matrix products."""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itmfeat.errors import DataError
from itmfeat.retrieval.precision import HELD_SCORES, float32, full_precision, threads

# Scores compared at once: few enough for the masks to stay in the processor's cache.
COMPARED_SCORES = 2**22


class Ranks(NamedTuple):
    """0-based int64 ranks: `i2t` (N,), the best of any caption of the image, and `t2i` (C,)."""

    i2t: Tensor
    t2i: Tensor


def ranks(image: Tensor, text: Tensor, caption_image: Tensor) -> Ranks:
    """Exact ranks of `image` (N, E) and `text` (C, E), caption c being of image `caption_image[c]`.

    An image may have any number of captions, in any order, but at least one. Computed in float32 on
    the device of `image`, at most `HELD_SCORES` scores at a time.
    """
    return folded_ranks(image, text, caption_image, len(image))[0]


def folded_ranks(image: Tensor, text: Tensor, caption_image: Tensor, size: int) -> tuple[Ranks, list[Ranks]]:
    """The `ranks` of the whole, and those within each fold of `size` consecutive images and their captions.

    The product is shared, so folds cost little beside the whole. One fold of all images is not made.
    """
    device = image.device
    image, text = float32(image, device), float32(text, device)
    caption_image = caption_image.to(device, torch.int64)
    _check_pairs(len(image), len(text), caption_image)
    scores = _Scores(image, text)
    # Products take all threads, the counting one: its steps last a millisecond each, and on a busy
    # machine threads wait longer than that for each other.
    with full_precision(device), threads(1):
        whole, folds = _ranks(scores, caption_image), []
        for start in range(0, len(image), size) if size < len(image) else ():
            mine = ((caption_image >= start) & (caption_image < start + size)).nonzero()[:, 0]
            folds.append(_ranks(scores.part(start, start + size, mine), caption_image[mine] - start))
    return whole, folds


def _ranks(scores: "_Scores", caption_image: Tensor) -> Ranks:
    """The ranks by the scores (N, C) of images and captions (C,)."""
    i2t, own = _image_ranks(scores, caption_image)
    return Ranks(i2t, _caption_ranks(scores, own, caption_image))


def first(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """The first k of `gallery` (G, E) for each of `queries` (Q, E): ids (Q, min(k, G)), -1 for a NaN.

    In the order that `ranks` counts in, to the last tie, which `search` does not promise: of equal scores
    the lower id stands first, also where a list ends among them. Computed as `ranks` is.
    """
    device = queries.device
    queries, gallery = float32(queries, device), float32(gallery, device)
    k = min(k, len(gallery))
    if k < 1 or not len(queries):
        raise DataError("there is nothing to rank: queries, gallery and list need at least one entry each")
    lists = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    with full_precision(device):
        for rows, block in _Scores(queries, gallery).chunks():
            lists[rows] = _first(block, k)
    return lists


def _first(scores: Tensor, k: int) -> Tensor:
    """The ids (Q, k) of the first k of each row of `scores` (Q, G), -1 for a NaN."""
    known, asked = scores, min(k + 1, scores.shape[1])
    top = known.topk(asked, dim=1)
    if top.values.isnan().any():  # a NaN counts as ahead, as topk has it, but compares with nothing
        known = scores.masked_fill(scores.isnan(), torch.inf)
        top = known.topk(asked, dim=1)
    ids, last = top.indices[:, :k].sort(dim=1).values, top.values[:, k - 1 : k]
    # Where a list ends among equal scores, topk takes any of them.
    tied = (top.values[:, k:] == last).any(dim=1).nonzero()[:, 0]
    if len(tied):
        row, equal = known[tied], known[tied] == last[tied]
        above = row > last[tied]
        chosen = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
        ids[tied] = chosen.nonzero()[:, 1].view(-1, k)
    order = known.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
    ids = ids.gather(1, order)
    return ids.masked_fill(scores.gather(1, ids).isnan(), -1)


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
            inside = ((self.row_of >= start) & (self.row_of < start + self.step)).nonzero()[:, 0]
            if not len(inside):
                continue
            product = self._product(start)
            for rows in torch.split(inside, size):
                yield rows, _taken(_taken(product, 0, self.row_of[rows] - start), 1, self.column_of)

    def part(self, first: int, last: int, columns: Tensor) -> "_Scores":
        """Those of the images from `first` to before `last` with some captions, of the same product."""
        part = copy.copy(self)
        part.row_of, part.column_of = self.row_of[first:last], self.column_of[columns]
        return part

    def _product(self, start: int) -> Tensor:
        """Scores (step, V) of distinct vectors; held for the second pass if there are no others."""
        if self.held is not None:
            return self.held
        with threads(self.threads):
            product = self.image[start : start + self.step] @ self.text.T
        if self.step == len(self.image):
            self.held = product
        return product


def _taken(scores: Tensor, dim: int, ids: Tensor) -> Tensor:
    """The rows (dim 0) or columns (dim 1) `ids` of a product; a view where they stand side by side."""
    if (ids.diff() == 1).all():
        return scores.narrow(dim, int(ids[0]), len(ids))
    return scores.index_select(dim, ids)


def _distinct(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The U distinct rows of `vectors` (X, E), as (U, E), and which of them each row is, (X,)."""
    rows = vectors.cpu().numpy()
    # Rows are compared as bytes, so that even NaN equals itself; a table finds copies faster than a sort.
    seen: dict[bytes, int] = {}
    copied = (seen.setdefault(row.tobytes(), number) for number, row in enumerate(rows))
    first, which = np.unique(np.fromiter(copied, np.int64, len(rows)), return_inverse=True)
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
