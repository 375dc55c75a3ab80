"""The gallery: which queries it shows, and what the page has to know of them, within a budget of bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from itmfeat.report.html.hits import WAYS, Asked
from itmfeat.report.html.thumbnails import thumbnail
from itmfeat.report.table import percent

SEED = 0  # of the draw, so that the same runs make the same page


def packed(value: object) -> str:
    """Data for the script of a page, in ASCII.

    No "<" stays, so that no text in it can end the element it stands in or start another.
    """
    return json.dumps(value, separators=(",", ":")).replace("<", r"\u003c")


@dataclass
class Gallery:
    """What of a test split stands in the page, in the form in which its script reads it.

    Keys of `captions`, `images` and `thumbnails` are positions in the split. A thumbnail stands there once,
    however many lists it is in.
    """

    asked: Asked
    queries: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {way: [] for way in WAYS})
    left_out: dict[str, list[int]] = field(default_factory=lambda: {way: [] for way in WAYS})
    captions: dict[int, tuple[str, int]] = field(default_factory=dict)  # text and image
    images: dict[int, tuple[str, str]] = field(default_factory=dict)  # file and first caption
    thumbnails: dict[int, str] = field(default_factory=dict)
    _made: dict[int, str | None] = field(default_factory=dict)  # with those that found no room

    @property
    def unreadable(self) -> int:
        """How many pictures are not there or cannot be read."""
        return sum(picture is None for picture in self._made.values())

    @property
    def data(self) -> dict[str, Any]:
        """All but the thumbnails."""
        return {
            "dataset": self.asked.dataset,
            "runs": [
                {"name": f"{method}, {percent(noise)} % noise, seed {seed}", "method": method, "noise": noise}
                for method, noise, seed in self.asked.runs
            ],
            "totals": {way: self.asked.first[way].shape[1] for way in WAYS},
            "wins": {way: self.asked.wins(way) for way in WAYS},
            "queries": self.queries,
            "captions": self.captions,
            "images": self.images,
        }

    def add(self, way: str, query: int, drawn: bool, root: Path | None, room: int) -> int:
        """Take a query in if what it adds fits into `room` bytes; how many it took, 0 if it found no room."""
        asked = self.asked
        hits = asked.found[way][:, query]  # (N, 10)
        own = np.flatnonzero(asked.caption_image == query).tolist() if way == "i2t" else [query]
        shown = [query] if way == "i2t" else [int(asked.caption_image[query]), *hits.ravel().tolist()]
        told = [*own, *hits.ravel().tolist()] if way == "i2t" else own
        entry = {"id": query, "drawn": drawn, "own": own, "found": hits.tolist()}
        captions = {each: asked.told(each) for each in told if each not in self.captions}
        images = {each: asked.shown(each) for each in shown if each not in self.images}
        if root:
            self._made |= {
                each: thumbnail(root, images[each][0]) for each in images if each not in self._made
            }
        found = {each: picture for each in images if (picture := self._made.get(each))}
        took = sum(len(packed(part)) for part in (entry, captions, images, found))
        if took > room:
            return 0
        self.queries[way].append(entry)
        self.captions |= captions
        self.images |= images
        self.thumbnails |= found
        return took


def gallery(asked: Asked, root: Path | None, budget: int, queries: int) -> Gallery:
    """At most so many queries of each direction, as long as they fit into `budget` bytes.

    `root` is where the image files lie; without it there are names instead of pictures.
    """
    found = Gallery(asked)
    room = budget - len(packed(found.data))
    turns = zip_longest(*([(way, *each) for each in choose(asked, way, queries)] for way in WAYS))
    for turn in chain.from_iterable(turns):
        if turn is None:  # one direction has fewer queries
            continue
        way, query, drawn = turn
        took = found.add(way, query, drawn, root, room)
        room -= took
        if not took:
            found.left_out[way].append(query)
    return found


def choose(asked: Asked, way: str, count: int) -> list[tuple[int, bool]]:
    """At most so many queries of a direction, and whether each was drawn at random.

    Two of three are those about which the runs disagree most (by the deviation of the place of the first
    right hit), in random order where they disagree equally; every third is drawn from the others, so that one
    sees more than extremes.
    """
    spread = asked.first[way].std(axis=0)  # (queries,)
    draw = np.random.default_rng(SEED).permutation(len(spread))
    apart = draw[np.argsort(-spread[draw], kind="stable")]
    apart = apart[: np.count_nonzero(spread)][: count - count // 3]
    rest = draw[~np.isin(draw, apart)][: count - len(apart)]
    turns = zip_longest(apart[::2].tolist(), apart[1::2].tolist(), rest.tolist())
    marked = [((one, False), (other, False), (drawn, True)) for one, other, drawn in turns]
    return [(query, drawn) for query, drawn in chain.from_iterable(marked) if query is not None]


def galleries(
    splits: Sequence[Asked], roots: Sequence[Path | None], budget: int, queries: int
) -> list[Gallery]:
    """A gallery for each test split, each with an equal share of the budget."""
    share = budget // max(1, len(splits))
    return [gallery(asked, root, share, queries) for asked, root in zip(splits, roots, strict=True)]
