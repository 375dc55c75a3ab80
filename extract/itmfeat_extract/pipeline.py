"""Decode, forward, write: the features of a corpus into a cache, overlapped and resumable.

The unit of work is a range of items that is always processed in the same batches, so a file that was
interrupted and resumed has the same bytes as one written in one go. While the device works on a range,
threads decode the next ones and another thread writes the last.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from itmfeat.cache import SPLITS, FeatureSpec, FeatureWriter, holds, write_index
from itmfeat.cache.journal import Journal
from itmfeat_extract.backbones import ImageBackbone, TextBackbone
from itmfeat_extract.backbones.lanes import encode_pictures
from itmfeat_extract.corpus import Corpus
from itmfeat_extract.pictures import decode as decode_image
from itmfeat_extract.tokens import TokenPolicy

Progress = Callable[[str, int, int], None]
"""Called with what is being extracted, items done and items in all."""

IMAGE_RANGE, TEXT_RANGE, TEXT_BATCH = 64, 2048, 512
AHEAD = 2  # ranges that are decoded in advance
VERSIONS = ("torch", "transformers", "pillow", "numpy", "h5py", "itmfeat")


@dataclass(frozen=True)
class Settings:
    """How to extract, whatever the backbone."""

    dtype: str = "float16"
    workers: int = 2  # threads that decode images


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
) -> Path:
    """Image features of a corpus into `path`; a finished file with the same settings stays as it is.

    The rows in `missing` cannot be decoded: their items are empty.
    """
    count = len(corpus.image_files)
    present = np.ones(count, bool)
    present[list(missing)] = False
    spec = FeatureSpec(
        kind="image",
        backbone=backbone.name,
        dataset=dataset,
        lengths=np.where(present, policy.regions(backbone), 0).astype(np.int64),
        dim=backbone.dim,
        pooled_dim=backbone.pooled_dim,
        boxed=policy.boxed(backbone),
        labelled=policy.boxed(backbone),
        tokens=str(policy),
        range_items=IMAGE_RANGE,
        **_provenance(backbone.fingerprint(), settings),
    )
    if holds(path, spec):
        progress(backbone.name, count, count)
        return path
    if missing:
        _forget(path, replace(spec, lengths=np.full(count, policy.regions(backbone), np.int64)))

    def decode(row: int) -> NDArray[np.uint8]:
        if not present[row]:  # a blank keeps the batch its size, and is dropped behind the forward pass
            return backbone.preprocess(Image.new("RGB", (1, 1)))
        return decode_image(corpus, row, backbone.preprocess)

    with FeatureWriter(path, spec) as writer:
        with _decoded(writer, decode, settings.workers) as ranges, _Writes(writer) as writes:
            done = count - sum(len(writer.items(index)) for index in writer.pending)
            for index, pictures in ranges:
                encoded = encode_pictures(backbone, pictures)
                payloads = _without_blanks(policy.apply(encoded, backbone), present[writer.items(index)])
                writes.add(index, **payloads)
                done += len(pictures)
                progress(backbone.name, done, count)
        return writer.finish()


def _forget(path: Path, stopped: FeatureSpec) -> None:
    """Delete what an extraction that stopped at an unreadable image has left: its vectors lie elsewhere."""
    part = path.with_name(path.name + ".part")
    if part.exists():
        journal = Journal(path.with_name(path.name + ".journal"))  # and its lock
        if journal.read().identity == stopped.identity():
            part.unlink()
        journal.close()


def _without_blanks(payloads: dict[str, torch.Tensor], present: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Payloads of the items that are present (B,): others lose their vectors, and are zero in `pooled`."""
    if present.all():
        return payloads
    keep = torch.from_numpy(present).to(payloads["features"].device)
    kept = {
        name: values.reshape(len(keep), -1, *values.shape[1:])[keep].flatten(0, 1)
        for name, values in payloads.items()
        if name != "pooled"
    }
    if "pooled" in payloads:
        kept["pooled"] = payloads["pooled"].masked_fill(~keep.unsqueeze(1), 0)
    return kept


def extract_texts(
    corpus: Corpus,
    dataset: str,
    path: Path,
    backbone: TextBackbone,
    settings: Settings,
    progress: Progress,
) -> Path:
    """Token features of all captions into `path`; each range is batched by length, to pad little."""
    tokenized = backbone.tokenize(corpus.captions)
    ids, count = tokenized.ids, len(corpus.captions)
    lengths = np.array([len(tokens) for tokens in ids], np.int64)
    fingerprint = backbone.fingerprint() | {"truncated": tokenized.truncated}
    spec = FeatureSpec(
        kind="text",
        backbone=backbone.name,
        dataset=dataset,
        lengths=lengths,
        dim=backbone.dim,
        pooled_dim=backbone.pooled_dim,
        range_items=TEXT_RANGE,
        **_provenance(fingerprint, settings),
    )
    if holds(path, spec):
        progress(backbone.name, count, count)
        return path
    with FeatureWriter(path, spec) as writer:
        with _Writes(writer) as writes:
            done = count - sum(len(writer.items(index)) for index in writer.pending)
            for index in writer.pending:
                items = writer.items(index)
                vectors, pooled = _encode_range(backbone, [ids[item] for item in items])
                writes.add(index, features=vectors, **({} if pooled is None else {"pooled": pooled}))
                done += len(items)
                progress(backbone.name, done, count)
        return writer.finish()


def _encode_range(
    backbone: TextBackbone, ids: list[list[int]]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Token ids of a range -> its vectors one after another (V, D), and pooled vectors (items, P)."""
    lengths = np.array([len(tokens) for tokens in ids])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    vectors = np.empty((int(starts[-1]), backbone.dim), np.float32)
    pooled = np.empty((len(ids), backbone.pooled_dim), np.float32) if backbone.pooled_dim else None
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), TEXT_BATCH):
        chosen = order[first : first + TEXT_BATCH]
        width = backbone.pad_to or int(lengths[chosen].max())
        padded = torch.full((len(chosen), width), backbone.pad_id)
        for row, item in enumerate(chosen):
            padded[row, : lengths[item]] = torch.tensor(ids[item])
        encoded = backbone.encode(padded, torch.from_numpy(lengths[chosen]))
        found = encoded.vectors.float().cpu().numpy()
        for row, item in enumerate(chosen):
            vectors[starts[item] : starts[item + 1]] = found[row, : lengths[item]]
        if pooled is not None and encoded.pooled is not None:
            pooled[chosen] = encoded.pooled.float().cpu().numpy()
    return vectors, pooled


@contextmanager
def _decoded(
    writer: FeatureWriter, decode: Callable[[int], NDArray[np.uint8]], workers: int
) -> Iterator[Iterator[tuple[int, list[NDArray[np.uint8]]]]]:
    """The pending ranges as pictures (H, W, 3), decoded in advance by threads."""
    pool = ThreadPoolExecutor(max(1, workers), "decode")

    def ranges() -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
        waiting: deque[tuple[int, list[Future[NDArray[np.uint8]]]]] = deque()
        for index in writer.pending:
            waiting.append((index, [pool.submit(decode, row) for row in writer.items(index)]))
            if len(waiting) > AHEAD:
                yield _results(*waiting.popleft())
        while waiting:
            yield _results(*waiting.popleft())

    try:
        yield ranges()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(index: int, futures: list[Future[NDArray[np.uint8]]]) -> tuple[int, list[NDArray[np.uint8]]]:
    return index, [future.result() for future in futures]


class _Writes:
    """A thread that narrows, checksums and writes finished ranges while the device goes on."""

    def __init__(self, writer: FeatureWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, "write")
        self._last: Future[None] | None = None

    def add(self, index: int, **payloads: Any) -> None:
        """Hand over a range: tensors or arrays, as `FeatureWriter.write` takes them."""
        self._wait()
        self._last = self._pool.submit(self._write, index, payloads)

    def _write(self, index: int, payloads: dict[str, Any]) -> None:
        arrays = {
            name: _widened(value).cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in payloads.items()
        }
        self._writer.write(index, **arrays)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> "_Writes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._wait()


def _widened(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.is_floating_point() else values


def _provenance(fingerprint: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Where features come from, as the attributes of a feature file."""
    return {
        "dtype": settings.dtype,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
        "versions": json.dumps({name: version(name) for name in VERSIONS}, sort_keys=True),
    }


def default_workers() -> int:
    """Decoding threads: one a core, at most eight; Pillow lets other threads run meanwhile."""
    return min(8, os.cpu_count() or 1)
