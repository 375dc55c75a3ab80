"""The features of a corpus into a cache: what a file will hold, and who fills it.

The unit of work is a range of items that is always processed in the same batches, so a file that was
interrupted and resumed, or made by many processes, has the same bytes as one written in one go.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import SPLITS, FeatureSpec, holds, write_index
from itmfeat.cache.journal import Journal
from itmfeat.errors import Note, silent
from itmfeat_extract.backbones import ImageBackbone, Ragged, TextBackbone
from itmfeat_extract.corpus import Corpus
from itmfeat_extract.filling import Engine, Here, Progress, Work
from itmfeat_extract.launch import Launch
from itmfeat_extract.makers import Images, Texts, versions
from itmfeat_extract.pictures import sizes
from itmfeat_extract.tokens import TokenPolicy

IMAGE_RANGE, TEXT_RANGE = 64, 2048
ALONE = Launch()


@dataclass(frozen=True)
class Settings:
    """How to extract, whatever the backbone."""

    dtype: str = "float16"
    workers: int = 2  # threads that decode images
    launch: Launch = ALONE  # which of several copies of a command this is


def write_corpus(corpus: Corpus, cache: Path) -> str:
    """Write the index of a corpus into a cache folder, or check the one there; returns its digest."""
    strings = {"image_id": corpus.image_ids, "image_file": corpus.image_files, "caption": corpus.captions}
    columns: dict[str, NDArray[np.generic]] = {
        "image_split": np.array([SPLITS.index(split) for split in corpus.image_splits], np.uint8),
        "caption_id": np.array(corpus.caption_ids, np.int64),
        "caption_image": corpus.caption_image.astype(np.int64),
    }
    return write_index(cache / "dataset.h5", corpus.name, strings, columns)


def extract_images(
    corpus: Corpus,
    dataset: str,
    path: Path,
    backbone: ImageBackbone,
    policy: TokenPolicy,
    settings: Settings,
    progress: Progress,
    missing: Collection[int] = (),
    *,
    engine: Engine | None = None,
    note: Note = silent,
) -> Path:
    """Image features of a corpus into `path`; a finished file with the same settings stays as it is.

    The rows in `missing` cannot be decoded: their items are empty. `engine` has the ranges made: this
    process, if nothing else is said. What was the bottleneck is told to `note`.
    """
    count = len(corpus.image_files)
    present = np.ones(count, bool)
    present[list(missing)] = False
    regions = _regions(corpus, backbone, policy, missing, settings.workers)
    spec = FeatureSpec(
        kind="image",
        backbone=backbone.name,
        dataset=dataset,
        lengths=np.where(present, regions, 0),
        dim=backbone.dim,
        pooled_dim=backbone.pooled_dim,
        boxed=policy.boxed(backbone),
        labelled=policy.boxed(backbone),
        tokens=str(policy),
        range_items=IMAGE_RANGE,
        **_provenance(backbone, backbone.fingerprint(), settings),
    )
    if holds(path, spec):
        progress(backbone.name, count, count)
        return path
    if missing:
        _forget(path, replace(spec, lengths=regions))

    def names(items: range) -> list[str | None]:
        return [corpus.image_files[item] if present[item] else None for item in items]

    maker = Images(backbone, policy, corpus.root, corpus.opener)
    work = Work(path, spec, names, progress, note)
    return work.run(maker, engine or Here(settings.workers), settings.launch)


def _regions(
    corpus: Corpus, backbone: ImageBackbone, policy: TokenPolicy, missing: Collection[int], workers: int
) -> NDArray[np.int64]:
    """Vectors of each image (images,), as if none were missing; known before the first forward pass."""
    regions = np.full(len(corpus.image_files), policy.regions(backbone), np.int64)
    if policy.kind == "all" and isinstance(backbone, Ragged):
        for row, size in enumerate(sizes(corpus, workers, missing)):
            regions[row] = math.prod(backbone.cells(*size))
    return regions


def _forget(path: Path, stopped: FeatureSpec) -> None:
    """Delete what an extraction that stopped at an unreadable image has left: its vectors lie elsewhere."""
    part = path.with_name(path.name + ".part")
    if part.exists():
        journal = Journal(path.with_name(path.name + ".journal"))  # and its lock
        if journal.read().identity == stopped.identity():
            part.unlink()
        journal.close()


def extract_texts(
    corpus: Corpus,
    dataset: str,
    path: Path,
    backbone: TextBackbone,
    settings: Settings,
    progress: Progress,
    *,
    engine: Engine | None = None,
    note: Note = silent,
) -> Path:
    """Token features of all captions into `path`; the options are those of `extract_images`."""
    ids, lengths, truncated = tokenized(backbone, corpus.captions)
    count = len(corpus.captions)
    fingerprint = backbone.fingerprint() | {"truncated": truncated}
    spec = FeatureSpec(
        kind="text",
        backbone=backbone.name,
        dataset=dataset,
        lengths=lengths,
        dim=backbone.dim,
        pooled_dim=backbone.pooled_dim,
        range_items=TEXT_RANGE,
        **_provenance(backbone, fingerprint, settings),
    )
    if holds(path, spec):
        progress(backbone.name, count, count)
        return path
    starts = np.concatenate([[0], np.cumsum(lengths)])
    work = Work(path, spec, lambda items: [ids[starts[i] : starts[i + 1]] for i in items], progress, note)
    return work.run(Texts(backbone), engine or Here(1), settings.launch)


def tokenized(
    backbone: TextBackbone, captions: list[str]
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Ids of all captions one after another, their lengths (captions,), and how many were cut.

    A part at a time: ids as Python numbers take ten times the memory.
    """
    parts, lengths, truncated = [], [], 0
    for first in range(0, len(captions), TEXT_RANGE):
        found = backbone.tokenize(captions[first : first + TEXT_RANGE])
        parts.append(np.fromiter(chain.from_iterable(found.ids), np.int32))
        lengths.append(np.fromiter(map(len, found.ids), np.int64))
        truncated += found.truncated
    return np.concatenate(parts), np.concatenate(lengths), truncated


def _provenance(
    backbone: ImageBackbone | TextBackbone, fingerprint: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """Where features come from, as the attributes of a feature file."""
    return {
        "dtype": settings.dtype,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
        "versions": json.dumps(versions(backbone), sort_keys=True),
    }
