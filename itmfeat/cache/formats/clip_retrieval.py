"""The folder that clip-retrieval (rom1504) writes: one vector an image and one a caption, in shards.

Shard S is three files; row i of each is the same pair:

- `img_emb/img_emb_S.npy`: floats (rows, D);
- `text_emb/text_emb_S.npy`: floats (rows, D), in all shards or in none;
- `metadata/metadata_S.parquet`: a table with `image_path`, `caption` and what else is known of the pair.

S counts from 0, in some folders with zeros in front. Rows count from 0 in messages too.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itmfeat.cache.folder import open_cache
from itmfeat.cache.formats.clip_tables import IDENTITY, Pairs, columns, require_arrow, rows_of, write_table
from itmfeat.cache.formats.matching import file_name, listing, versions
from itmfeat.cache.formats.npy import Floats, mapped
from itmfeat.cache.formats.target import check_room, new_folder
from itmfeat.cache.gather import Gather
from itmfeat.cache.index import SPLITS, write_index
from itmfeat.cache.reader import FeatureFile, holds
from itmfeat.cache.schema import DTYPES
from itmfeat.cache.writer import FeatureSpec, FeatureWriter
from itmfeat.errors import DataError, Note, UsageError, silent, unknown

Ints = NDArray[np.int64]

RANGE_ITEMS = 2048
BLOCK = 2048  # rows that are compared, read or written at once
MEANS = 64  # the same where each has many vectors
SHARD = 100_000  # rows of a shard that is written: 0.4 GB of 2048 numbers in float16
LIKE = 0.01  # vectors of one image may differ by so much of their length: half precision depends on the batch


@dataclass(frozen=True)
class _Shard:
    """A shard; the arrays stay on the disk."""

    table: Path
    files: dict[str, Path]  # image, and text if there is one
    vectors: dict[str, Floats]  # the same: (rows, D)
    start: int  # rows before it

    @property
    def rows(self) -> int:
        return len(self.vectors["image"])


def read(
    source: Path,
    cache: Path,
    *,
    name: str = "clip-retrieval",
    backbone: str = "clip",
    dtype: str | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    split_seed: int | None = None,
    note: Note = silent,
) -> Path:
    """Import a folder as a cache: the index, `image/BACKBONE.h5` and, if there are any, `text/BACKBONE.h5`.

    Rows with the same image id (else path, key or URL) are captions of one image. Its vectors must be alike,
    within a hundredth of their length, and the first is taken. A column `split` says the splits; without one
    they are drawn, by default a tenth of the images each for val and test. Values keep their type; float64
    becomes float32. Everything is checked before the first file is written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, list(DTYPES))
    file_name(backbone)
    shards = _shards(source)
    pairs = _read_tables(shards)
    if pairs.splits[0] >= 0 and {val_fraction, test_fraction, split_seed} != {None}:
        raise UsageError(f"{source} says the split of each row: leave out the fractions and the seed")
    if pairs.splits[0] < 0:
        pairs.splits = _drawn(len(pairs.images), val_fraction, test_fraction, split_seed, note)
    empty = f", {pairs.empty} of them empty" if pairs.empty else ""
    note(f"{source}: {len(pairs.images)} images, {len(pairs.captions)} captions{empty}")
    image = np.array(pairs.image, np.int64)
    first = np.array(pairs.first, np.int64)
    _check_vectors(shards, first[image])
    order = np.argsort(image, kind="stable")  # captions of an image together, in the order of the rows
    digest = _write_index(cache, name, pairs, image, order)
    origin = {
        "format": "clip-retrieval",
        "files": listing(source, [path for shard in shards for path in (shard.table, *shard.files.values())]),
    }
    for kind, rows in (("image", first), ("text", order)):
        if kind in shards[0].vectors:
            _write_vectors(cache, kind, backbone, dtype, digest, shards, rows, origin)
    return cache


def _shards(source: Path) -> list[_Shard]:
    """The shards of a folder in the order of their numbers, checked against each other."""
    tables = _numbered(source / "metadata", "metadata", "parquet")
    images = _numbered(source / "img_emb", "img_emb", "npy")
    texts = _numbered(source / "text_emb", "text_emb", "npy")
    if not tables or not images:
        raise DataError(
            f"{source} is no folder of clip-retrieval: name one that holds img_emb/img_emb_0.npy and "
            "metadata/metadata_0.parquet"
        )
    kinds = {"image": images} | ({"text": texts} if texts else {})
    for found in kinds.values():
        if lacking := sorted(tables.keys() ^ found.keys()):
            raise DataError(f"{source}: shard {lacking[0]} is not complete; take all files from one place")
    shards: list[_Shard] = []
    for number in sorted(tables):
        files = {kind: found[number] for kind, found in kinds.items()}
        vectors = {kind: mapped(file, "rows, dim", (2,)) for kind, file in files.items()}
        start = shards[-1].start + shards[-1].rows if shards else 0
        shards.append(_Shard(tables[number], files, vectors, start))
        for kind, rows in vectors.items():
            if rows.shape[1] != (dim := shards[0].vectors[kind].shape[1]):
                raise DataError(f"{files[kind]} has vectors of {rows.shape[1]} numbers, others of {dim}")
    return shards


def _numbered(folder: Path, stem: str, ending: str) -> dict[int, Path]:
    """The files of a kind by their numbers."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"{stem}_*.{ending}")):
        if number := re.fullmatch(rf"{stem}_([0-9]{{1,18}})\.{ending}", path.name):
            if int(number[1]) in found:
                raise DataError(f"{path} and {found[int(number[1])]} are the same shard; take one away")
            found[int(number[1])] = path
    return found


def _read_tables(shards: list[_Shard]) -> Pairs:
    """All rows of all tables; only the columns that are needed are read."""
    pairs, names = Pairs(), columns(shards[0].table)
    identity = next(name for name in IDENTITY if name in names)
    for shard in shards:
        if columns(shard.table) != names:
            raise DataError(
                f"{shard.table} and {shards[0].table} have different columns; take all from one run"
            )
        rows = 0
        for rows, cells in enumerate(rows_of(shard.table, names), start=1):
            where = f"{shard.table}, row {rows - 1}"
            pairs.add(shard.start + rows - 1, cells, identity, where)
        for kind, vectors in shard.vectors.items():
            if rows != len(vectors):
                raise DataError(
                    f"{shard.table} has {rows} rows and {shard.files[kind]} {len(vectors)}; "
                    "take both from one run"
                )
    return pairs


def _drawn(images: int, val: float | None, test: float | None, seed: int | None, note: Note) -> list[int]:
    """A split for each image, drawn as `itmfeat extract` does where a dataset does not say."""
    asked = {"val": 0.1 if val is None else val, "test": 0.1 if test is None else test}
    if not (all(0 <= part <= 1 for part in asked.values()) and sum(asked.values()) <= 1):
        raise UsageError(
            f"--val-fraction {asked['val']:g} and --test-fraction {asked['test']:g} must be "
            "0 to 1 and no more than 1 together"
        )
    seed = seed or 0
    if not 0 <= seed < 2**32:
        raise UsageError(f"--split-seed must lie between 0 and {2**32 - 1}, not {seed}")
    sizes = [max(1, round(part * images)) if part else 0 for part in asked.values()]
    if sum(asked.values()) == 1:
        sizes[1] = images - sizes[0]  # rounding leaves no image to train
    train = images - sum(sizes)
    if train < (sum(asked.values()) < 1):
        raise DataError(f"{images} images are too few to split: give --val-fraction 0 or --test-fraction 0")
    # RandomState, because its stream is frozen: a seed means the same split under every NumPy.
    order = np.random.RandomState(seed).permutation(images)
    splits = np.zeros(images, np.int64)
    splits[order[: sizes[0]]] = SPLITS.index("val")
    splits[order[sizes[0] : sum(sizes)]] = SPLITS.index("test")
    note(
        f"no column split, so drawn with seed {seed}: {train} images train, {sizes[0]} val, {sizes[1]} test "
        "(--val-fraction, --test-fraction, --split-seed)"
    )
    return splits.tolist()


def _check_vectors(shards: list[_Shard], first: Ints) -> None:
    """All vectors must be finite, and alike in rows of one image; `first` (rows,) is its first row."""
    for shard in shards:
        for start in range(0, shard.rows, BLOCK):
            for kind, vectors in shard.vectors.items():
                block = vectors[start : start + BLOCK].astype(np.float64)
                broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
                _refuse(broken, shard.files[kind], start, "holds values that are no numbers")
            block = shard.vectors["image"][start : start + BLOCK].astype(np.float64)
            rows = shard.start + start + np.arange(len(block))
            again = np.flatnonzero(first[rows] != rows)
            earlier = _gathered(shards, "image", first[rows[again]]).astype(np.float64)
            apart = np.linalg.norm(block[again] - earlier, axis=1) > LIKE * np.linalg.norm(earlier, axis=1)
            what = "differs from the first row of the same image"
            _refuse(again[apart], shard.files["image"], start, what)


def _refuse(wrong: Ints, file: Path, start: int, what: str) -> None:
    """A DataError that names the first of the wrong rows of a block, if there is one."""
    if len(wrong):
        raise DataError(f"{file}: row {start + int(wrong[0])} {what}; compute the embeddings again")


def _gathered(shards: list[_Shard], kind: str, rows: Ints) -> Floats:
    """Vectors of rows that count through all shards, (rows, D)."""
    starts = np.array([shard.start for shard in shards])
    place = np.searchsorted(starts, rows, "right") - 1
    parts = [shard.vectors[kind] for shard in shards]
    found = np.empty((len(rows), parts[0].shape[1]), np.result_type(*{part.dtype for part in parts}))
    for number in np.unique(place):
        here = place == number
        found[here] = parts[number][rows[here] - starts[number]]
    return found


def _write_index(cache: Path, name: str, pairs: Pairs, image: Ints, order: Ints) -> str:
    whole = len(pairs.ids) == len(order) == len(set(pairs.ids) - {None})
    ids = np.array(pairs.ids)[order] if whole else np.arange(len(order))
    return write_index(
        cache / "dataset.h5",
        name,
        {
            "image_id": list(pairs.images),
            "image_file": pairs.files,
            "caption": [pairs.captions[row] for row in order],
        },
        {
            "image_split": np.array(pairs.splits, np.uint8),
            "caption_id": ids.astype(np.int64),
            "caption_image": image[order],
        },
    )


def _write_vectors(
    cache: Path,
    kind: str,
    backbone: str,
    dtype: str | None,
    dataset: str,
    shards: list[_Shard],
    rows: Ints,
    origin: dict[str, Any],
) -> None:
    """Write a feature file with one vector an item, of the given rows; resumes, and keeps a finished one."""
    parts = [shard.vectors[kind] for shard in shards]
    spec = FeatureSpec(
        kind=kind,
        backbone=backbone,
        dataset=dataset,
        lengths=np.ones(len(rows), np.int64),
        dim=parts[0].shape[1],
        dtype=dtype or ("float16" if all(part.itemsize == 2 for part in parts) else "float32"),
        range_items=RANGE_ITEMS,
        fingerprint=json.dumps({**origin, "weights": "unknown", "dim": parts[0].shape[1]}, sort_keys=True),
        versions=versions(),
    )
    path = cache / kind / f"{backbone}.h5"
    if holds(path, spec):
        return
    with FeatureWriter(path, spec) as writer:
        for part in writer.pending:
            items = writer.items(part)
            writer.write(part, features=_gathered(shards, kind, rows[items.start : items.stop]))
        writer.finish()


def write(
    cache: Path,
    target: Path,
    *,
    note: Note = silent,
    image_backbone: str | None = None,
    text_backbone: str | None = None,
) -> Path:
    """Export one vector an image and a caption in shards of 100,000 rows, one row a caption.

    The vector of an item is its only one, else the one that its backbone pools (CLIP: the embedding that
    images and texts share), else the mean of its vectors. Without text features there is no `text_emb`.
    Arrays have the type of the features; int8 becomes float16. The tables hold image_id, image_path, caption,
    caption_id and split. Images without features are left out, and `note` is told. The folder appears when it
    is complete; an existing one stays.
    """
    require_arrow()  # before the long work
    found = open_cache(cache)
    files = {"img_emb": found.open("image", image_backbone)}
    if text_backbone or found.backbones("text"):
        files["text_emb"] = found.open("text", text_backbone)
    if alone := found.index.images - len(np.unique(found.index.caption_image)):
        raise DataError(f"{alone} images of {cache} have no caption, and a row is a caption; leave them out")
    for file in files.values():
        file.check()
    patterns = ("*_emb/*_emb_*.npy", "metadata/metadata_*.parquet")
    missing = files["img_emb"].empty
    captions = np.flatnonzero(~np.isin(found.index.caption_image, missing))
    if len(missing):
        note(f"{len(missing)} images have no features and are left out with their captions")
    starts = range(0, len(captions), SHARD)
    with new_folder(target, patterns) as part:
        width = sum(_dim(file) * _dtype(file).itemsize for file in files.values())
        check_room(part, len(captions) * (width + 1000))
        for number, start in enumerate(starts):
            rows = captions[start : start + SHARD]
            name = str(number).zfill(len(str(len(starts))))
            for stem, file in files.items():
                items = found.index.caption_image[rows] if stem == "img_emb" else rows
                _write_array(part / stem / f"{stem}_{name}.npy", file, items)
            write_table(part / "metadata" / f"metadata_{name}.parquet", found.index, rows)
    return target


def _pools(file: FeatureFile) -> bool:
    """Whether the backbone's own vector of an item is exported."""
    return file.uniform != 1 and "pooled" in file.extents


def _dim(file: FeatureFile) -> int:
    """Length of the exported vector."""
    return file.extents["pooled" if _pools(file) else "features"].shape[1]


def _dtype(file: FeatureFile) -> np.dtype[Any]:
    return np.dtype("float32" if file.attributes["dtype"] == "float32" else "float16")


def _write_array(path: Path, file: FeatureFile, items: Ints) -> None:
    """The vectors of items (rows,), a block at a time."""
    vectors = _vectors(file)
    step = BLOCK if file.uniform == 1 or _pools(file) else MEANS
    path.parent.mkdir(exist_ok=True)
    # Not np.lib.format.open_memmap: a full disk kills the process that fills a mapping.
    with path.open("wb") as out:
        shape = (len(items), _dim(file))
        header = {"descr": _dtype(file).newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, len(items), step):
            unique, again = np.unique(items[start : start + step], return_inverse=True)
            block = vectors(unique)
            if not np.isfinite(block).all():
                raise DataError(f"{file.path} holds values beyond float16; extract it as float32")
            out.write(np.ascontiguousarray(block[again]).data)


def _vectors(file: FeatureFile) -> Callable[[Ints], Floats]:
    """items (B,) -> one vector of each, (B, D)."""
    if _pools(file):
        pooled = file.array("pooled")
        return lambda items: _narrow(pooled[items], file)
    gather = Gather(file)

    def mean(items: Ints) -> Floats:
        part = gather(torch.from_numpy(items))
        if file.uniform == 1:
            return _narrow(part.wide()[:, 0].numpy(), file)
        lengths = part.lengths.clamp(min=1).unsqueeze(1)
        return _narrow((part.wide().sum(1) / lengths).numpy(), file)

    return mean


def _narrow(vectors: Floats, file: FeatureFile) -> Floats:
    with np.errstate(over="ignore"):  # what is too large is found by the caller
        return vectors.astype(_dtype(file))
