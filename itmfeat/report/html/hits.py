"""The ten best hits of every test query of runs that were asked the same queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itmfeat.errors import DataError, ItmfeatError
from itmfeat.pairs import Ints
from itmfeat.report.collect import Run
from itmfeat.report.table import Row, Table

MISSED = 10  # the place of the first right hit where none is among the ten
WAYS = ("t2i", "i2t")


@dataclass(frozen=True)
class Asked:
    """A test split as runs saw it, and what each of N runs found; ids are positions in the split."""

    dataset: str
    digest: str  # of the dataset
    runs: tuple[tuple[str, float, int | None], ...]  # (N,) method, noise ratio, seed
    captions: tuple[str, ...]  # (C,)
    files: tuple[str, ...]  # (I,) below the root of the dataset
    caption_image: Ints  # (C,)
    found: dict[str, Ints]  # "t2i" (N, C, 10) images, "i2t" (N, I, 10) captions

    @cached_property
    def first(self) -> dict[str, NDArray[np.int8]]:
        """The place of the first right hit, 0 the best and `MISSED` where there is none: (N, queries)."""
        images = np.arange(len(self.files))[:, None]
        right = {
            "t2i": self.found["t2i"] == self.caption_image[:, None],  # (N, C, 10)
            "i2t": self.caption_image[self.found["i2t"]] == images,  # (N, I, 10)
        }
        return {
            way: np.where(hit.any(-1), hit.argmax(-1), MISSED).astype(np.int8) for way, hit in right.items()
        }

    def told(self, caption: int) -> tuple[str, int]:
        """A caption and the image it belongs to."""
        return self.captions[caption], int(self.caption_image[caption])

    def shown(self, image: int) -> tuple[str, str]:
        """The file of an image, and its first caption to say what it shows."""
        return self.files[image], self.captions[int(np.searchsorted(self.caption_image, image))]

    def wins(self, way: str) -> list[list[int]]:
        """For each run (row) and other run (column), how many queries the first answers earlier."""
        first = self.first[way]
        return [[int((own < other).sum()) for other in first] for own in first]


def asked(tables: Sequence[Table], cache: Path | None = None) -> tuple[list[Asked], list[str]]:
    """What the runs of the tables found, by test split, and a sentence for each run that is left out.

    `cache` stands in for the caches that the runs were trained on.
    """
    groups: dict[tuple[object, ...], list[tuple[Row, Run]]] = {}
    for row, run in _runs(tables):
        keys = ("dataset", "dataset_digest", "captions_per_image", "image_digest", "text_digest")
        key = tuple(run.config.get(each) for each in keys)
        groups.setdefault((key, run.results.images, run.results.captions), []).append((row, run))
    found, problems = [], []
    for group in groups.values():
        try:
            found.append(_asked(group, cache))
        except ItmfeatError as error:
            first, more = group[0][1].path.name, len(group) - 1
            others = f" and {more} more" if more else ""
            problems.append(f"{first}{others} cannot be shown in the gallery: {error}")
    return _joined(found), problems


def _joined(found: Sequence[Asked]) -> list[Asked]:
    """Those of the same images and captions as one, whatever features the runs saw of them."""
    splits: dict[tuple[object, ...], list[Asked]] = {}
    for one in found:
        key = (one.digest, one.files, one.captions, one.caption_image.tobytes())
        splits.setdefault(key, []).append(one)
    return [
        replace(
            same[0],
            runs=tuple(run for one in same for run in one.runs),
            found={way: np.concatenate([one.found[way] for one in same]) for way in WAYS},
        )
        for same in splits.values()
    ]


def _runs(tables: Sequence[Table]) -> list[tuple[Row, Run]]:
    """Every run folder once, with the row where it stands first."""
    found: dict[Path, tuple[Row, Run]] = {}
    for row in (row for table in tables for row in table.rows):
        for run in row.runs:
            found.setdefault(run.path.resolve(), (row, run))
    return list(found.values())


def _asked(group: list[tuple[Row, Run]], cache: Path | None) -> Asked:
    """Read the lists of a group of runs, and the split they belong to."""
    from itmfeat.features import reopen
    from itmfeat.runs import open_run

    first = group[0][1]
    recorded = first.manifest.cache
    if cache is None and (recorded is None or not (Path(recorded) / "dataset.h5").exists()):
        raise DataError("its cache is not where it was; say where with --cache")
    config = open_run(first.path).config()
    features = reopen(cache or Path(str(recorded)), config.data)
    pairs, index = features.pairs("test", config.data.captions_per_image), features.cache.index
    lists = [_lists(run.path, len(pairs.images), len(pairs.captions)) for _, run in group]
    return Asked(
        index.name,
        index.digest,
        tuple((row.method, row.noise, run.seed) for row, run in group),
        tuple(index.caption[int(row)] for row in pairs.captions),
        tuple(index.image_file[int(row)] for row in pairs.images),
        pairs.caption_image,
        {way: np.stack([each[way] for each in lists]) for way in WAYS},
    )


def _lists(run: Path, images: int, captions: int) -> dict[str, Ints]:
    """What a run found, checked: (I, 10) captions and (C, 10) images, fewer where the split is smaller."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = run / "retrieved.safetensors"
    try:
        lists = load(file.read_bytes())
        fits = _fit(lists["i2t"], images, captions) and _fit(lists["t2i"], captions, images)
    except (OSError, SafetensorError, KeyError, ValueError):
        fits = False
    if not fits:
        raise DataError(f"{file} is missing or does not fit the test split; delete {run} and train again")
    return lists


def _fit(ids: Ints, queries: int, things: int) -> bool:
    """Whether there is a list for each query, of ids that exist."""
    return ids.ndim == 2 and len(ids) == queries and bool(ids.min() >= 0 and ids.max() < things)
