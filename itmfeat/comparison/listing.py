"""The queries that tell two sides apart, by the names that a reader knows them by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from itmfeat.cache import open_cache
from itmfeat.comparison.metrics import balance_of
from itmfeat.comparison.sides import PathLike
from itmfeat.errors import DataError, Note
from itmfeat.retrieval import Queries
from itmfeat.retrieval.uncertainty import Floats
from itmfeat.runs import Run

Names = dict[str, Callable[[int], str]]
"""For each direction, from the position of a query to what a reader knows it by."""


def names_of(run: Run, ranks: dict[str, Tensor], cache: PathLike | None, note: Note) -> Names:
    """File names and texts from the cache of the run; numbers, and a note, where it is gone or another."""
    images, captions = ranks["images"].tolist(), ranks["captions"].tolist()
    path = Path(cache) if cache else Path(run.read("manifest.json")["cache"])
    try:
        index = open_cache(path).index
        if index.digest != run.config().data.dataset_digest:
            raise DataError(f"{path} holds another dataset than this run was made with")
    except DataError as error:
        note(f"queries are listed by number alone: {error}")
        return {
            "i2t": lambda place: f"image {images[place]}",
            "t2i": lambda place: f"caption {captions[place]}",
        }
    return {
        "i2t": lambda place: index.image_file[images[place]],
        "t2i": lambda place: index.caption[captions[place]],
    }


def won_and_lost(
    models: list[Queries], weight: Floats, metric: str, number: int, names: Names
) -> list[dict[str, Any]]:
    """Queries that the sides answer differently, the clearest first; both directions for rsum, at 1."""
    counted = np.flatnonzero(weight)
    own, share = [models[place] for place in counted], weight[counted]
    found = []
    for name in ("i2t_r1", "t2i_r1") if metric == "rsum" else (metric,):
        way = name[:3]
        balance = balance_of(own, share, name)
        ranks = np.stack([getattr(queries, way) for queries in own]) + 1  # (R, queries), from 1
        a, b = (abs(share[share * sign > 0]) @ ranks[share * sign > 0] for sign in (1, -1))
        for outcome, sign in (("won", 1.0), ("lost", -1.0)):
            # By how many runs find it, then by the distance of the mean ranks.
            order = np.lexsort((-sign * (b - a), -sign * balance))
            for place in map(int, order[: min(number, int((sign * balance > 1e-9).sum()))]):
                query = {"query": names[way](place), "rank_a": float(a[place]), "rank_b": float(b[place])}
                found.append({"metric": name, "outcome": outcome, **query})
    return found
