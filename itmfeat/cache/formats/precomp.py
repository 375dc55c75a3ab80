"""The `*_precomp` folder of SCAN, VSE-infinity and what was built on them.

Three files for each of the splits train, dev, test and, for COCO, testall:

- `{split}_ims.npy`: floats (rows, R, D), or (rows, D) where an image is one vector;
- `{split}_caps.txt`: UTF-8, a caption a line, in the order of the rows, equally many a row (mostly five);
- `{split}_ids.txt`: an image id a line, in the order of the rows; missing in some forks.

`id_mapping.json` has the file names by id; VSE-infinity keeps it beside a folder that is called `precomp`.
Train has a row an image. Dev and test mostly have a row a *caption*, so each image stands there five times.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from itmfeat.cache.folder import Cache, open_cache
from itmfeat.cache.formats.matching import Regions, Source, write_regions
from itmfeat.cache.formats.npy import Floats, mapped
from itmfeat.cache.formats.target import check_room, new_folder
from itmfeat.cache.gather import Gather
from itmfeat.cache.index import SPLITS, DatasetIndex, read_index, write_index
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.schema import DTYPES
from itmfeat.errors import DataError, Note, silent, unknown

NAMES = {"train": "train", "dev": "val", "test": "test", "testall": "test"}
"""What a split is called in the folder -> in a cache."""

PER_IMAGE = 5  # captions an image that the loaders of these folders count on
BLOCK = 64  # images that are compared or exported at once: 19 MB of 36 x 2048 numbers


@dataclass(frozen=True)
class _Split:
    """A split of a folder; the array stays on the disk."""

    name: str  # train, dev, test or testall
    file: Path
    rows: Floats  # (images * copies, R, D) or (images * copies, D)
    copies: int  # equal rows an image
    ids: list[str]  # one an image
    captions: list[str]  # as many for each image

    @property
    def shape(self) -> tuple[int, int]:
        """R and D; one region where an image is one vector."""
        return (1 if self.rows.ndim == 2 else self.rows.shape[1]), self.rows.shape[-1]


def read(
    source: Path,
    cache: Path,
    *,
    name: str = "precomp",
    backbone: str = "butd36",
    dtype: str = "float16",
    note: Note = silent,
) -> Path:
    """Import a folder: train, dev (as val) and test into a cache with an index and `image/BACKBONE.h5`.

    Splits that are not there stay empty. Of COCO's two test sets `testall` is taken where it is there, since
    `test` is its first 1,000 images. Where a split has as many rows as captions and each five rows are equal,
    they are one image with five captions; where they are not equal, each row is an image with one caption.
    Without a list of ids an image is called `SPLIT-ROW`. Caption ids are running numbers. Repeating an
    interrupted import goes on where it was.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, list(DTYPES))
    splits = _open(source)
    for split in splits:
        note(
            f"{split.file}: {len(split.ids)} images, {split.copies} row{'s' * (split.copies > 1)} each, "
            f"{len(split.captions)} captions, as {NAMES[split.name]}"
        )
    index = _write_index(source, cache, name, splits)
    return write_regions(_regions(splits), index, cache, backbone, dtype, note)


def _open(source: Path) -> list[_Split]:
    """The splits of a folder in the order of the cache, checked against each other."""
    ends = ("ims.npy", "caps.txt")
    there = [name for name in NAMES if any((source / f"{name}_{end}").is_file() for end in ends)]
    if not there:
        raise DataError(
            f"{source} is no precomp folder: name one that holds train_ims.npy and train_caps.txt, "
            "and the same for dev and test"
        )
    splits = [_open_split(source, name) for name in there if name != "test" or "testall" not in there]
    if len({split.shape for split in splits}) > 1:
        shapes = ", ".join(f"{split.name} {split.rows.shape}" for split in splits)
        raise DataError(f"the splits of {source} differ in shape ({shapes}); take all from one place")
    owner: dict[str, str] = {}
    for split in splits:
        for image in split.ids:
            if image in owner:
                raise DataError(
                    f"image {image} of {source} stands in {owner[image]}_ids.txt and again in "
                    f"{split.name}_ids.txt; an image belongs to one split, so take all files from one place"
                )
            owner[image] = split.name
    return splits


def _open_split(source: Path, name: str) -> _Split:
    file = source / f"{name}_ims.npy"
    rows, captions = _rows(file), _lines(source / f"{name}_caps.txt")
    if not captions or len(captions) % len(rows):
        raise DataError(
            f"{file} has {len(rows)} rows and {name}_caps.txt {len(captions)} captions, which is no whole "
            "number of captions a row; take both from one place"
        )
    copies = PER_IMAGE if len(rows) == len(captions) and _repeats(rows) else 1
    images = len(rows) // copies
    ids = source / f"{name}_ids.txt"
    given = _image_ids(ids, images) if ids.exists() else [f"{name}-{row}" for row in range(images)]
    return _Split(name, file, rows, copies, given, captions)


def _rows(file: Path) -> Floats:
    """The array of a split, (rows, R, D) or (rows, D)."""
    if not file.is_file():
        raise DataError(f"{file} is missing: put it there, or remove the other files of its split")
    return mapped(file, "images, regions, dim", (2, 3))


def _lines(file: Path) -> list[str]:
    """The lines of a text file without outer blanks; only line feeds separate, as in the loaders."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: put it beside the array of its split") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text: download or unpack it again") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def _repeats(rows: Floats) -> bool:
    """Whether each five rows are the same image; ends at the first that are not."""
    step = BLOCK * PER_IMAGE

    def equal(first: int) -> bool:
        block = rows[first : first + step]
        groups = block.reshape(-1, PER_IMAGE, *block.shape[1:])
        return bool((groups == groups[:, :1]).all())

    return len(rows) % PER_IMAGE == 0 and all(equal(first) for first in range(0, len(rows), step))


def _image_ids(file: Path, images: int) -> list[str]:
    """An id an image; the file may name each as often as it has rows or captions."""
    lines = _lines(file)
    times = len(lines) // images
    ids = lines[:: max(times, 1)]
    if not times or len(lines) % images or any(ids != lines[copy::times] for copy in range(times)):
        raise DataError(f"{file} does not name the {images} images of its array; take both from one place")
    return ids


def _write_index(source: Path, cache: Path, name: str, splits: list[_Split]) -> DatasetIndex:
    """`dataset.h5` of the splits, one after another."""
    ids = [image for split in splits for image in split.ids]
    files = _file_names(source)
    captions = [caption for split in splits for caption in split.captions]
    images = [len(split.ids) for split in splits]
    counts = np.repeat([len(split.captions) // len(split.ids) for split in splits], images)
    codes = np.array([SPLITS.index(NAMES[split.name]) for split in splits], np.uint8)
    write_index(
        cache / "dataset.h5",
        name,
        {"image_id": ids, "image_file": [files.get(image, "") for image in ids], "caption": captions},
        {
            "image_split": np.repeat(codes, images),
            "caption_id": np.arange(len(captions), dtype=np.int64),
            "caption_image": np.repeat(np.arange(len(ids), dtype=np.int64), counts),
        },
    )
    return read_index(cache / "dataset.h5")


def _file_names(source: Path) -> dict[str, str]:
    """Image id -> file name, where there is a mapping."""
    folders = [source, source.parent] if source.name == "precomp" else [source]
    for file in (folder / "id_mapping.json" for folder in folders):
        if file.is_file():
            try:
                found = json.loads(file.read_bytes())
            except ValueError:
                found = None
            if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
                raise DataError(f"{file} is no JSON object of file names; repair or remove it")
            return dict(found)
    return {}


def _regions(splits: list[_Split]) -> Source:
    """The images of all splits, one after another; each is read when it is asked for."""
    starts = np.cumsum([0, *(len(split.ids) for split in splits)])
    regions, dim = splits[0].shape

    def load(row: int) -> Regions:
        place = int(np.searchsorted(starts, row, "right")) - 1
        split = splits[place]
        return Regions(split.rows[(row - int(starts[place])) * split.copies].reshape(regions, dim))

    return Source(
        lengths=np.full(int(starts[-1]), regions, np.int64),
        dim=dim,
        boxed=False,
        load=load,
        origin={
            "format": "precomp",
            "files": {split.file.name: split.file.stat().st_size for split in splits},
        },
    )


def write(
    cache: Path,
    target: Path,
    *,
    note: Note = silent,
    image_backbone: str | None = None,
    redundant: bool = False,
) -> Path:
    """Export images, their first five captions and splits (val as dev) for the loaders of other projects.

    Arrays are float32 (images, R, D), or (images, D) where an image is one vector; other types are widened.
    `redundant` stores each dev and test image five times, as loaders want that evaluate on every fifth row.
    File names go to `id_mapping.json`. Images without features are left out, and `note` is told. The folder
    appears when it is complete; an existing one stays.
    """
    found = open_cache(cache)
    features = found.open("image", image_backbone)
    missing = features.empty
    kept = np.setdiff1d(np.arange(len(features)), missing)
    if len(set(features.lengths(kept).tolist())) != 1:
        raise DataError(
            f"{features.path} has images with different numbers of regions, and a precomp array one number "
            "for all; choose another --image-backbone"
        )
    if len(missing):
        note(
            f"{len(missing)} of {len(features)} images have no features and are left out with their captions"
        )
    captions = _first_captions(found, kept)
    with new_folder(target, ("*_ims.npy", "*_*.txt", "id_mapping.json")) as part:
        _check_room(found.index.image_split[kept], features, part, redundant)
        for name, split in zip(("train", "dev", "test"), SPLITS, strict=True):
            rows = kept[found.index.image_split[kept] == SPLITS.index(split)]
            if len(rows):
                copies = PER_IMAGE if redundant and name != "train" else 1
                _write_split(part, name, found, features, rows, captions[rows], copies)
        _write_names(part / "id_mapping.json", found)
    return target


def _first_captions(found: Cache, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the first five captions of each image, (images, 5); of those that are not kept any rows."""
    index = found.index
    counts = np.bincount(index.caption_image, minlength=index.images)
    if few := int((counts[kept] < PER_IMAGE).sum()):
        raise DataError(
            f"{few} of the {index.images} images of {found.path} have fewer than five captions, and a "
            "precomp folder holds five of each; export a cache without those"
        )
    order = np.argsort(index.caption_image, kind="stable")
    starts = np.cumsum(counts) - counts
    places = np.minimum(starts[:, None] + np.arange(PER_IMAGE), index.captions - 1)
    return np.asarray(order[places], np.int64)


def _check_room(splits: NDArray[np.uint8], features: FeatureFile, place: Path, redundant: bool) -> None:
    """`splits` (I,) are those of the images to write."""
    rows = int(np.where(splits == SPLITS.index("train"), 1, PER_IMAGE if redundant else 1).sum())
    check_room(place, rows * int(np.diff(features.offsets).max()) * features.dim * 4)


def _write_split(
    folder: Path,
    name: str,
    found: Cache,
    features: FeatureFile,
    rows: NDArray[np.int64],
    captions: NDArray[np.int64],
    copies: int,
) -> None:
    """The three files of a split: images `rows` (I,), their captions (I, 5)."""
    regions = int(features.lengths(rows)[0])
    vector = (features.dim,) if regions == 1 else (regions, features.dim)
    shape = (len(rows) * copies, *vector)
    # Not np.lib.format.open_memmap: a full disk kills the process that fills a mapping.
    with (folder / f"{name}_ims.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in _blocks(features, rows):
            file.write(np.repeat(block, copies, axis=0).astype("<f4", copy=False).data)
    index = found.index
    ids = [index.image_id[int(row)] for row in rows for _ in range(copies)]
    lines = [re.sub(r"[\r\n]+", " ", index.caption[int(row)]) for row in captions.flatten()]
    for end, values in (("ids", ids), ("caps", lines)):
        text = "".join(f"{value}\n" for value in values)
        (folder / f"{name}_{end}.txt").write_bytes(text.encode())


def _blocks(features: FeatureFile, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Vectors of images, (B, R, D) at a time, as float32."""
    gather = Gather(features)
    for first in range(0, len(rows), BLOCK):
        yield gather(torch.from_numpy(rows[first : first + BLOCK])).wide().numpy()


def _write_names(path: Path, found: Cache) -> None:
    """File names by id, if the cache knows any."""
    index = found.index
    pairs = zip(index.image_id.tolist(), index.image_file.tolist(), strict=True)
    if names := {image: file for image, file in pairs if file}:
        path.write_text(json.dumps(names))
