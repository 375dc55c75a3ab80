"""Caches that were damaged, mixed up, cut or made by strangers."""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from processes import HANG, fails

from itmfeat.cache import FeatureFile, open_cache, read_index, verify, write_index
from itmfeat.errors import DataError

PAYLOADS = ("features", "scales", "pooled", "boxes", "scores", "labels")
STRINGS = {"image_id": ["a", "b"], "image_file": ["a.jpg", ""], "caption": ["x", "é", "zz"]}
COLUMNS = {
    "image_split": np.array([0, 2], np.uint8),
    "caption_id": np.array([7, 9, 8]),
    "caption_image": np.array([0, 0, 1]),
}


@pytest.fixture
def cache(toy_cache: Path, tmp_path: Path) -> Path:
    """A copy of the toy cache, to be damaged."""
    return Path(shutil.copytree(toy_cache, tmp_path / "toy"))


def reseal(path: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a file and seal it again: whoever makes a file can seal it."""
    with h5py.File(path, "r+") as file:
        change(file)
        file["seal"][...] = 0
        place = file["seal"].id.get_offset()
        found = [file[name].id for name in PAYLOADS if file.get(name, getlink=True) is not None]
        spans = sorted((data.get_offset(), data.get_storage_size()) for data in found if data.get_offset())
    raw, digest, position = bytearray(path.read_bytes()), hashlib.sha256(), 0
    for start, size in [*spans, (len(raw), 0)]:
        digest.update(raw[position:start])
        position = start + size
    raw[place : place + 32] = digest.digest()
    path.write_bytes(raw)


def put(name: str, index: int, value: object) -> Callable[[h5py.File], object]:
    """Sets one value of a dataset."""
    return lambda file: file[name].__setitem__(index, value)


def test_a_schema_of_the_future_is_named_whatever_its_seal(cache: Path) -> None:
    for name in ("dataset.h5", "image/grid.h5"):
        path = cache / name
        with h5py.File(path, "r+") as file:
            file.attrs.modify("schema", np.int64(7))
            del file["seal"]
        opener = read_index if name == "dataset.h5" else FeatureFile
        known = "1" if name == "dataset.h5" else "1 and 2"
        with pytest.raises(
            DataError, match=f"has schema 7, this version reads {known}; extract it again or use"
        ):
            opener(path)


INDEX_FAULTS = {
    "image_split is above 2": put("image_split", 3, 3),
    "caption_image points beyond": put("caption_image", -1, 60),
    "not in the order": put("caption_image", 10, 0),
    "caption_id stands twice": put("caption_id", 4, 5),
    "image_id stands twice": put("image_id", 1, ord("0")),
    "image_file does not fit its offsets": put("image_file_offsets", 1, 7777),
    "caption does not fit its offsets": put("caption_offsets", -1, 5),
    "caption does not fit": put("caption", 0, 0xFF),
    "dataset.h5 has no name": lambda file: file.attrs.pop("name"),
    "dataset.h5 has no digest": lambda file: file.attrs.pop("digest"),
    "dataset.h5 has no caption_id": lambda file: file.pop("caption_id"),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_that_contradicts_itself(cache: Path, fault: str) -> None:
    reseal(cache / "dataset.h5", INDEX_FAULTS[fault])
    fails(3, fault, "cache", "verify", cache)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_split": np.array([0, 3], np.uint8)}, "image_split is above 2"),
        ({"caption_image": np.array([0, 1, 2])}, "caption_image points beyond"),
        ({"caption_image": np.array([-1, 0, 1])}, "caption_image points beyond"),
        ({"caption_image": np.array([1, 0, 1])}, "not in the order"),
        ({"caption_id": np.array([7, 8, 7])}, "caption_id stands twice"),
        ({"caption_id": np.array([7, 8])}, "differ in length"),
        ({"image_id": ["a", "a"]}, "image_id stands twice"),
        ({"image_file": ["a"]}, "differ in length"),
        ({"image_split": np.array([0, 1])}, "image_split is int64"),
    ],
)
def test_an_index_is_checked_before_it_is_written(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    strings = STRINGS | {key: value for key, value in changes.items() if key in STRINGS}
    columns = COLUMNS | {key: value for key, value in changes.items() if key in COLUMNS}
    with pytest.raises(DataError, match=f"{fault}.*; correct the dataset"):
        write_index(tmp_path / "c" / "dataset.h5", "toy", strings, columns)
    assert not (tmp_path / "c").exists()


def test_an_empty_index_is_an_index(tmp_path: Path) -> None:
    strings = {key: [] for key in STRINGS}
    columns = {key: value[:0] for key, value in COLUMNS.items()}
    write_index(tmp_path / "dataset.h5", "nothing", strings, columns)
    assert open_cache(tmp_path).index.captions == 0


def test_a_wrong_digest_is_found(cache: Path) -> None:
    """Contents changed with care: sealed again, and every feature file still names the old digest."""
    reseal(cache / "dataset.h5", put("caption_id", 0, 999))
    fails(3, "dataset.h5: its digest is not that of its contents", "cache", "verify", cache)
    reseal(cache / "image" / "grid.h5", lambda file: file.attrs.modify("dataset", np.bytes_("0" * 64)))
    fails(3, "grid.h5 belongs to another dataset.*; .*its digest is not", "cache", "verify", cache)


FEATURE_FAULTS = {
    "offsets do not fit": put("offsets", 0, 1),
    "its offsets": put("offsets", -1, 3),
    "offsets": put("offsets", 5, 0),
    "range_items": lambda file: file.attrs.modify("range_items", np.int64(0)),
    "checksums": lambda file: file.attrs.modify("range_items", np.int64(1)),
    "its dtype": lambda file: file.attrs.modify("dtype", np.bytes_("float32")),
    "no file of itmfeat": lambda file: file.attrs.modify("fingerprint", np.bytes_("{")),
    "it has no dtype": lambda file: file.attrs.pop("dtype"),
    "words.h5 has no tokens": lambda file: file.attrs.pop("tokens"),
    "its checksums": lambda file: file.create_dataset("scores", data=np.zeros(3, np.float32)),
}


@pytest.mark.parametrize("fault", FEATURE_FAULTS)
def test_a_feature_file_that_contradicts_itself(cache: Path, fault: str) -> None:
    reseal(cache / "text" / "words.h5", FEATURE_FAULTS[fault])
    fails(3, fault, "cache", "verify", cache)


def test_swapped_files_are_found(cache: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(cache, tmp_path / "other"))
    (other / "dataset.h5").unlink()
    index = open_cache(cache).index
    columns = {key: getattr(index, key) for key in COLUMNS}
    strings = {key: getattr(index, key).tolist() for key in STRINGS}
    write_index(other / "dataset.h5", "toy", strings, columns | {"caption_id": index.caption_id + 1})
    fails(3, "image/grid.h5 belongs to another dataset.*; .*text/words.h5 belongs", "cache", "verify", other)
    shutil.copy(cache / "text" / "words.h5", cache / "image" / "grid.h5")
    fails(3, "grid.h5 does not hold the image features of toy", "cache", "verify", cache)
    shutil.copy(cache / "text" / "words.h5", cache / "dataset.h5")
    fails(3, "dataset.h5 (has no image_split|is damaged)", "cache", "verify", cache)


def test_a_swapped_range_is_named(cache: Path) -> None:
    """Two rows of features change places."""
    path = cache / "text" / "words.h5"
    found = FeatureFile(path)
    extent, first, last = found.extents["features"], int(found.offsets[129]), int(found.offsets[290])
    raw, size = bytearray(path.read_bytes()), extent.row(1) - extent.row(0)
    one, two = (slice(extent.row(row), extent.row(row) + size) for row in (first, last))
    raw[one], raw[two] = raw[two], raw[one]
    path.write_bytes(raw)
    fails(3, "items 128 to 255 are damaged.*; .*items 256 to 299 are damaged", "cache", "verify", cache)


def test_truncation_anywhere_is_found(cache: Path) -> None:
    chance = random.Random(0)
    for name in ("dataset.h5", "image/grid.h5", "text/words.h5"):
        path = cache / name
        raw = path.read_bytes()
        for size in [0, 1, 8, 96, len(raw) - 1, *chance.sample(range(len(raw)), 30)]:
            path.write_bytes(raw[:size])
            with pytest.raises(DataError, match=re.escape(str(path))):
                raise DataError("; ".join(verify(cache)))  # found damages, or an index that cannot be opened
        path.write_bytes(raw + b"\0")
        with pytest.raises(DataError, match="is damaged"):
            (read_index if name == "dataset.h5" else FeatureFile)(path)
        path.write_bytes(raw)


def virtual(file: h5py.File, elsewhere: Path) -> None:
    """`features` as a view of another file, of a length that only that file tells."""
    source = h5py.VirtualSource(elsewhere, "features", (4, 12), np.float16, (None, 12))
    layout = h5py.VirtualLayout((4, 12), np.float16, (None, 12))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("features", layout)


def filtered(file: h5py.File, number: int) -> None:
    """`features` with a filter that HDF5 does not have and looks for among its plugins."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4, 12))
    plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((4, 12))
    made = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, dcpl=plist)
    made.write_direct_chunk((0, 0), bytes(96))  # as if the filter had been there


def claimed(file: h5py.File, shape: tuple[int, ...]) -> None:
    """`features` of a shape that the file has no bytes for."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, dcpl=plist)


def stored(data: object, dtype: object = None, **options: object) -> Callable[[h5py.File, Path], object]:
    """`features` with these values."""
    return lambda file, _: file.create_dataset("features", data=data, dtype=dtype, **options)


def named(value: object) -> Callable[[h5py.File, Path], object]:
    """Something else than a dataset under the name `features`."""
    return lambda file, _: file.__setitem__("features", value)


def external(file: h5py.File, elsewhere: Path) -> None:
    """`features` as the bytes of another file."""
    file.create_dataset("features", (4, 12), "f2", external=[(str(elsewhere), 0, 96)])


PLAIN, CONTIGUOUS, FIT = "is no plain dataset", "is not stored contiguously", "do not fit the rest"
FOREIGN: dict[str, tuple[str, Callable[[h5py.File, Path], object]]] = {
    "an external link": (PLAIN, lambda file, path: named(h5py.ExternalLink(path, "features"))(file, path)),
    "a soft link": (PLAIN, named(h5py.SoftLink("/offsets"))),
    "a group": (PLAIN, lambda file, _: file.create_group("features")),
    "a committed type": (PLAIN, named(np.dtype("f2"))),
    "a virtual dataset": (CONTIGUOUS, virtual),
    "external storage": (CONTIGUOUS, external),
    "an unknown filter": (CONTIGUOUS, lambda file, _: filtered(file, 32_123)),
    "a compressed dataset": (CONTIGUOUS, stored(np.ones((4, 12)), "f2", compression="gzip")),
    "texts": (CONTIGUOUS, stored(["a", "b"], h5py.string_dtype())),
    "arrays of any length": (CONTIGUOUS, stored(None, h5py.vlen_dtype("i4"), shape=(4,))),
    "references": (CONTIGUOUS, stored(None, h5py.ref_dtype, shape=(4,))),
    "a huge shape": ("is truncated", lambda file, _: claimed(file, (2**40, 12))),
    "the largest shape": ("is truncated", lambda file, _: claimed(file, (2**60, 4))),
    "compounds": (FIT, stored(np.zeros(4, [("a", "f4"), ("b", "i2")]))),
    "a scalar": (FIT, stored(np.float16(3))),
    "nothing": ("is damaged or no file of itmfeat", stored(h5py.Empty("f2"))),
    "big-endian numbers": (FIT, stored(np.ones((240, 12)), ">f2")),
}


@pytest.fixture(scope="module")
def opened(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each foreign file, opened in a process that hangs if it follows a path out of a file.

    All paths lead to named pipes that nobody writes to, and so does the only plugin that HDF5 could find.
    """
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("elsewhere.h5", "plugins"):
        if name == "plugins":
            (folder / name).mkdir()
            os.mkfifo(folder / name / "libfilter.so")
        else:
            os.mkfifo(folder / name)
    for number, (_, make) in enumerate(FOREIGN.values()):
        path = Path(shutil.copy(toy_cache / "image" / "grid.h5", folder / f"{number}.h5"))

        def change(file: h5py.File, make: Callable[[h5py.File, Path], object] = make) -> None:
            del file["features"]
            make(file, folder / "elsewhere.h5")

        with h5py.File(path, "r+") as file:
            change(file)
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom itmfeat.cache import FeatureFile\n"
        "from itmfeat.errors import DataError\n"
        "for number in range(int(sys.argv[2])):\n"
        "    try:\n        FeatureFile(Path(sys.argv[1]) / f'{number}.h5')\n        print('opened')\n"
        "    except DataError as error:\n        print(error, flush=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, folder, str(len(FOREIGN))],
        env=os.environ | {"HDF5_PLUGIN_PATH": str(folder / "plugins")},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(FOREIGN, run.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("what", FOREIGN)
def test_strange_files_are_refused_unread(opened: dict[str, str], what: str) -> None:
    assert re.search(FOREIGN[what][0], opened[what]), opened[what]


@pytest.mark.slow
def test_an_index_of_the_size_of_coco_opens_quickly(tmp_path: Path) -> None:
    images, captions = 123_287, 616_767
    text = "a man riding a wave on top of a surfboard in the sea"
    write_index(
        tmp_path / "dataset.h5",
        "coco",
        {
            "image_id": [str(number) for number in range(images)],
            "image_file": [f"val2014/COCO_val2014_{number:012}.jpg" for number in range(images)],
            "caption": [text] * captions,
        },
        {
            "image_split": np.zeros(images, np.uint8),
            "caption_id": np.random.default_rng(0).permutation(captions),
            "caption_image": np.minimum(np.arange(captions) // 5, images - 1),
        },
    )
    code = (
        "import re, sys, time; from itmfeat.cache import open_cache\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "clock, before, start = time.process_time, peak(), time.process_time()\n"
        "index = open_cache(sys.argv[1]).index\n"
        "opened, used, start = clock() - start, peak() - before, clock()\n"
        "texts = [index.caption[row] for row in range(index.captions)]\n"
        "print(opened, clock() - start, used)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True)
    opened, read, kilobytes = map(float, run.stdout.split())
    assert opened < read  # 0.2 s here, where a string of each caption takes 0.8 s; both of the processor
    assert kilobytes < 170_000
