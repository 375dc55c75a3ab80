"""Gathering from the disk and from memory gives what was written, and never a damaged byte."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_features

from itmfeat.cache import FeatureFile, FeatureSpec, Gather, Resident, open_cache, verify
from itmfeat.errors import DataError

LENGTHS = np.array([3, 1, 0, 4, 2, 2, 5, 1] * 5)
UNIFORM = np.full(40, 3)


def made(path: Path, lengths: np.ndarray, dtype: str) -> tuple[FeatureFile, np.ndarray]:
    """A file with ranges of seven items, and its values as they were before rounding."""
    spec = FeatureSpec("image", "toy", "d", lengths, 6, dtype=dtype, range_items=7)
    vectors = np.random.default_rng(1).standard_normal((int(lengths.sum()), 6)).astype(np.float32)
    write_features(path, spec, vectors)
    return FeatureFile(path), vectors


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("lengths", [LENGTHS, UNIFORM], ids=["ragged", "uniform"])
def test_disk_and_memory_give_what_was_written(tmp_path: Path, lengths: np.ndarray, dtype: str) -> None:
    file, vectors = made(tmp_path / "toy.h5", lengths, dtype)
    rows = np.array([33, 3, 4, 5, 7, 2, 21])
    held = Resident(file, rows, torch.device("cpu"))
    for items in ([5], [4, 5, 4, 33, 2], [2], [], [3, 4, 5]):
        wanted = torch.tensor(items, dtype=torch.int64)
        disk, memory = Gather(file)(wanted), held(wanted)
        assert torch.equal(disk.vectors, memory.vectors)
        assert disk.vectors.dtype == (torch.int8 if dtype == "int8" else getattr(torch, dtype))
        assert disk.lengths.tolist() == memory.lengths.tolist() == [lengths[item] for item in items]
        for place, item in enumerate(items):
            first, last = file.offsets[item], file.offsets[item + 1]
            for found in (disk.wide()[place], memory.wide()[place]):
                np.testing.assert_allclose(found[: last - first], vectors[first:last], atol=0.02)
                assert not found[last - first :].any()


def test_items_without_vectors_at_the_end(tmp_path: Path) -> None:
    lengths = np.r_[UNIFORM[:14], np.zeros(7, np.int64)]
    file, vectors = made(tmp_path / "toy.h5", lengths, "float32")
    for mapped in (True, False):
        gather = Gather(file, mapped=mapped)
        assert gather(torch.tensor([20, 14])).vectors.shape == (2, 0, 6)
        found = gather(torch.tensor([13, 0]))
        np.testing.assert_array_equal(found.vectors, vectors.reshape(14, 3, 6)[[13, 0]])


def test_a_range_is_compared_when_it_is_first_touched(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    file, _ = made(path, UNIFORM, "float16")
    place = file.extents["features"].row(15 * 3)  # item 15, in the range of items 14 to 20
    with path.open("r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)[0]
        raw.seek(place)
        raw.write(bytes([byte ^ 1]))
    gather = Gather(FeatureFile(path))
    assert gather(torch.tensor([13, 21])).vectors.shape == (2, 3, 6)
    for _ in range(2):  # and it stays refused
        with pytest.raises(DataError, match="items 14 to 20 are damaged"):
            gather(torch.tensor([13, 18]))
    with pytest.raises(DataError, match="items 14 to 20 are damaged"):
        Resident(FeatureFile(path), np.arange(40), torch.device("cpu"))
    assert Gather(FeatureFile(path), checked=False)(torch.tensor([15])).vectors.shape == (1, 3, 6)


def test_a_file_that_shrinks_under_the_reader_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    file, _ = made(path, UNIFORM, "float16")
    gather = Gather(file, checked=False)
    with path.open("r+b") as raw:
        raw.truncate(file.extents["features"].row(20))
    with pytest.raises(DataError, match="became shorter"):
        gather(torch.tensor([39]))


@pytest.mark.skipif(sys.platform != "linux", reason="where the kernel takes advice")
def test_reading_ahead_changes_nothing(toy_cache: Path) -> None:
    gather = Gather(open_cache(toy_cache).open("text"))
    items = torch.tensor([7, 250, 12, 7])
    before = gather(items).vectors
    gather.ahead(items)
    gather.ahead(torch.arange(0))
    assert torch.equal(gather(items).vectors, before)


def test_a_mapping_needs_no_memory_of_its_own(tmp_path: Path) -> None:
    """A writable private mapping is refused where it is larger than all memory; ours is read-only."""
    file, _ = made(tmp_path / "toy.h5", UNIFORM, "float16")
    assert not file.array().flags.writeable


def test_swapped_contents_are_found(tmp_path: Path) -> None:
    """Two files of the same shape: the bytes of one under the checksums of the other."""
    file, _ = made(tmp_path / "a.h5", UNIFORM, "float16")
    other = tmp_path / "b.h5"
    shutil.copy(file.path, other)
    extent = file.extents["features"]
    with other.open("r+b") as raw:
        raw.seek(extent.offset)
        raw.write(bytes(extent.nbytes))
    assert FeatureFile(other).verify() == [range(i, min(i + 7, 40)) for i in range(0, 40, 7)]


def test_two_backbones_that_changed_names_are_found(toy_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(toy_cache, tmp_path / "cache"))
    image = open_cache(cache).open("image")
    spec = FeatureSpec("image", "other/net", str(image.attributes["dataset"]), np.full(len(image), 2), 3)
    write_features(cache / "image" / "other-net.h5", spec, np.zeros((2 * len(image), 3)))
    assert verify(cache) == []
    first, second = cache / "image" / "grid.h5", cache / "image" / "other-net.h5"
    first.rename(cache / "aside.h5")
    second.rename(first)
    (cache / "aside.h5").rename(second)
    assert [text.split(";")[0] for text in verify(cache)] == [
        f"{first} holds the features of other-net",
        f"{second} holds the features of grid",
    ]
