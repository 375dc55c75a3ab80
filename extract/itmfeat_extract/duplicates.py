"""What stands in two splits at once: a test image that was trained on makes every number too good."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from itmfeat.cache import SPLITS
from itmfeat.errors import DataError
from itmfeat_extract.corpus import Corpus

_TAIL = 4096  # the last bytes of a picture differ where its size and its header do not
_STEP = 4096  # images that are looked at between two rounds of the threads
_EXAMPLES = 3


@dataclass(frozen=True)
class Shared:
    """Images (files of equal content) or captions (equal texts) that stand in two splits or more."""

    what: str  # "images" or "captions"
    counts: dict[str, int]  # "train and test" -> how many different ones
    examples: list[str]  # of images the names of two files that are the same

    def __str__(self) -> str:
        counts = ", ".join(f"{count} in {where}" for where, count in self.counts.items())
        return f"{self.what} that stand in more than one split: {counts}; as {'; '.join(self.examples)}"


def shared_captions(corpus: Corpus) -> Shared:
    """Captions of equal text, whatever the case of their letters, in different splits."""
    keys = (caption.casefold() for caption in corpus.captions)
    splits = [corpus.image_splits[row] for row in corpus.caption_image.tolist()]
    groups = _across(keys, splits)
    return Shared(
        "captions", _counts(groups, splits), [corpus.captions[rows[0]] for rows in groups[:_EXAMPLES]]
    )


def shared_images(corpus: Corpus, workers: int) -> Shared:
    """Images of equal bytes in different splits.

    Only those are read whole whose size and last bytes another split has too.
    """
    splits = corpus.image_splits
    with ThreadPoolExecutor(max(1, workers), "compare") as pool:

        def digests(rows: list[int], whole: bool) -> Iterable[Hashable]:
            for first in range(0, len(rows), _STEP):
                part = rows[first : first + _STEP]
                yield from pool.map(lambda row: _digest(corpus, row, whole), part)

        everyone = list(range(len(splits)))
        near = sorted(row for rows in _across(digests(everyone, False), splits) for row in rows)
        found = _across(digests(near, True), [splits[row] for row in near])
    groups = [[near[place] for place in places] for places in found]
    pairs = [_pair(rows, splits) for rows in groups[:_EXAMPLES]]
    examples = [f"{corpus.image_files[one]} = {corpus.image_files[other]}" for one, other in pairs]
    return Shared("images", _counts(groups, splits), examples)


def _pair(rows: list[int], splits: list[str]) -> tuple[int, int]:
    """The first of a group, and the first that stands in another split."""
    return rows[0], next(row for row in rows if splits[row] != splits[rows[0]])


def _across(keys: Iterable[Hashable], splits: list[str]) -> list[list[int]]:
    """Rows that have one key and stand in different splits, group by group."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            groups[key].append(row)
    return [rows for rows in groups.values() if len({splits[row] for row in rows}) > 1]


def _counts(groups: list[list[int]], splits: list[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for rows in groups:
        present = {splits[row] for row in rows}
        counts[" and ".join(split for split in SPLITS if split in present)] += 1
    return dict(counts)


def _digest(corpus: Corpus, row: int, whole: bool) -> Hashable:
    """A digest of an image's bytes, or its size and last bytes; None for one that is not to be read."""
    try:
        with corpus.open(row) as file:
            if whole:
                return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return size, hashlib.sha256(file.read(_TAIL)).digest()[:16]
    except (OSError, DataError):
        return None  # decoding will name it
