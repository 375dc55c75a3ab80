"""Readers of the field's datasets: a folder as people have it in, one `Corpus` out."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError, UsageError, unknown
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.coco import read_coco
from itmfeat_extract.corpus.demo import read_demo
from itmfeat_extract.corpus.flickr import read_flickr8k, read_flickr30k
from itmfeat_extract.corpus.folder import read_albef, read_folder
from itmfeat_extract.corpus.rows import LAYOUT
from itmfeat_extract.corpus.shards import read_webdataset
from itmfeat_extract.corpus.splits import keep_first
from itmfeat_extract.corpus.tables import read_datasets

__all__ = ["GENERAL", "READERS", "SPLITS", "Corpus", "SplitFractions", "read"]

READERS: dict[str, Callable[[Path, SplitFractions | None], Corpus]] = {
    "albef": read_albef,
    "coco": read_coco,
    "datasets": read_datasets,
    "demo": read_demo,
    "flickr30k": read_flickr30k,
    "flickr8k": read_flickr8k,
    "folder": read_folder,
    "webdataset": read_webdataset,
}
GENERAL = ("albef", "datasets", "folder", "webdataset")
"""Layouts that any dataset may have; all others are datasets of their own."""


def read(
    reader: str,
    root: Path,
    fractions: SplitFractions | None = None,
    limit: int | None = None,
    name: str | None = None,
) -> Corpus:
    """The dataset in the folder `root` as `reader` reads it; every image that it lists is there.

    `fractions` split a dataset that comes without splits. Of one that lacks a split they make it out of its
    training images; for a split that it has they are refused. `limit` keeps that many images: the first ones
    of each split, in proportion to the splits, at least one of each where possible. A missing `demo` is
    drawn; any other must be there. `name` is what a dataset of a general layout is called, by default as its
    folder.
    """
    if reader not in READERS:
        raise unknown("dataset", reader, list(READERS))
    if name is not None and (reader not in GENERAL or not re.fullmatch(r"[\w][\w.@+-]*", name)):
        raise UsageError(
            f"--name gives a dataset of the layouts {', '.join(GENERAL)} a name of letters, digits, - and _; "
            f"{name!r} for {reader} does not fit"
        )
    if reader not in ("demo", "webdataset") and not root.is_dir():  # webdataset takes patterns too
        raise DataError(f"{reader}: there is no folder {root}: give --root DIR; {LAYOUT}")
    try:
        corpus = READERS[reader](root, fractions)
    except OSError as error:
        raise DataError(f"{reader}: cannot read {error.filename}: {error.strerror}") from error
    if reader in GENERAL:
        corpus = replace(corpus, name=name or re.sub(r"[^\w.@+-]", "-", corpus.root.resolve().name) or reader)
    return corpus if limit is None else keep_first(corpus, limit)
