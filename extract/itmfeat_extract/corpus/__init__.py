"""Readers of the field's datasets: a folder as people have it in, one `Corpus` out."""

from collections.abc import Callable
from pathlib import Path

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError, unknown
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.coco import read_coco
from itmfeat_extract.corpus.demo import read_demo
from itmfeat_extract.corpus.flickr import read_flickr8k, read_flickr30k
from itmfeat_extract.corpus.rows import LAYOUT
from itmfeat_extract.corpus.splits import DEFAULT as DEFAULT_FRACTIONS
from itmfeat_extract.corpus.splits import keep_first

__all__ = ["DEFAULT_FRACTIONS", "READERS", "SPLITS", "Corpus", "SplitFractions", "read"]

READERS: dict[str, Callable[[Path, SplitFractions | None], Corpus]] = {
    "coco": read_coco,
    "demo": read_demo,
    "flickr30k": read_flickr30k,
    "flickr8k": read_flickr8k,
}


def read(name: str, root: Path, fractions: SplitFractions | None = None, limit: int | None = None) -> Corpus:
    """The dataset `name` in the folder `root`; every image file it lists is there.

    `fractions` split a dataset that comes without splits, and are refused where it has its own.
    `limit` keeps that many images: the first ones of each split, in proportion to the splits, at
    least one of each where possible. A missing `demo` is drawn; any other must be there.
    """
    if name not in READERS:
        raise unknown("dataset", name, list(READERS))
    if name != "demo" and not root.is_dir():
        raise DataError(f"{name}: there is no folder {root}: give --root DIR; {LAYOUT}")
    try:
        corpus = READERS[name](root, fractions)
    except OSError as error:
        raise DataError(f"{name}: cannot read {error.filename}: {error.strerror}") from error
    return corpus if limit is None else keep_first(corpus, limit)
