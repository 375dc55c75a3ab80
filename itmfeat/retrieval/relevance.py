"""Several relevant items for a query: R-precision, mAP@R and recalls from the first ranks.

With R relevant items, R-precision is the share of them among the first R ranks. AP@R adds up the
precision at each of these ranks that holds a relevant item, and divides by R; mAP@R is its mean
over the queries. Musgrave et al., "A Metric Learning Reality Check" (arXiv 2003.08505) proposed
mAP@R, Chun et al., "ECCV Caption" (arXiv 2204.03359) brought it to image-text retrieval.
"""

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from itmfeat.errors import DataError
from itmfeat.retrieval.ranking import first

RECALLED = 10  # the longest list that a recall looks at


class Relevance(NamedTuple):
    """Which items fit which query, as P pairs in any order; a pair that stands twice counts once.

    An item below 0 is one that the gallery lacks: it counts among the relevant ones and is never found.
    """

    query: Tensor  # (P,) int64, rows of the queries
    item: Tensor  # (P,) int64, rows of the gallery


class Precision(TypedDict):
    """Means in percent over the queries that have a relevant item, and how many these are.

    A recall at K is the share of queries with any relevant item among their first K ranks.
    """

    queries: int
    r1: float
    r5: float
    r10: float
    r_precision: float
    map_at_r: float


def precision_at_r(queries: Tensor, gallery: Tensor, relevance: Relevance) -> Precision:
    """Rank `gallery` (G, E) for those of `queries` (Q, E) that have a relevant item, and score the lists.

    Ties are broken as in `ranks`: equal scores stand by lower id, a NaN is ahead of all and never right.
    """
    wanted, query = torch.unique(relevance.query.to(queries.device), return_inverse=True)
    found = Relevance(query, relevance.item.to(queries.device))
    return score(first(queries[wanted], gallery, longest(found)), found, len(gallery))


def longest(relevance: Relevance) -> int:
    """How long a list must be for all metrics: the most relevant items that a query has, at least ten."""
    return max(RECALLED, int(_distinct(relevance).query.bincount().max()))


def score(lists: Tensor, relevance: Relevance, items: int) -> Precision:
    """The metrics of ranked ids (Q, k) in a gallery of `items`; -1 stands where no item can be right.

    k must be at least `longest(relevance)`, or the whole gallery.
    """
    query, item = _distinct(Relevance(*(ids.to(lists.device) for ids in relevance)))
    if query.min() < 0 or query.max() >= len(lists) or item.max() >= items:
        raise DataError(f"a relevant item lies outside the {len(lists)} queries or the {items} items")
    total = query.bincount(minlength=len(lists))  # (Q,) the R of each query
    relevant = (query * items + item)[item >= 0]
    rows = torch.arange(len(lists), device=lists.device)[:, None]
    hit = torch.isin(rows * items + lists, relevant) & (lists >= 0)
    asked = total > 0
    hit, total = hit[asked], total[asked, None]
    rank = torch.arange(1, hit.shape[1] + 1, device=lists.device)
    within = (hit & (rank <= total)).double()
    average = (within * within.cumsum(dim=1) / rank).sum(dim=1) / total[:, 0]

    def percent(values: Tensor) -> float:
        return 100 * float(values.double().mean())

    r1, r5, r10 = (percent(hit[:, :k].any(dim=1)) for k in (1, 5, 10))
    return {
        "queries": len(hit),
        "r1": r1,
        "r5": r5,
        "r10": r10,
        "r_precision": percent(within.sum(dim=1) / total[:, 0]),
        "map_at_r": percent(average),
    }


def _distinct(relevance: Relevance) -> Relevance:
    """Each pair once; a DataError if there is none."""
    if not len(relevance.query):
        raise DataError("no query has a relevant item, so there is nothing to score")
    pairs = torch.unique(torch.stack(tuple(relevance), dim=1), dim=0)
    return Relevance(pairs[:, 0], pairs[:, 1])
