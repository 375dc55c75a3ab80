"""Archives: the same bytes back, what is finished stays, and nothing else than an archive is unpacked."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from conftest import write_features
from processes import call, fails, finish_under_kills

from itmfeat.cache import FeatureSpec, FeatureWriter, open_cache, read_index, schema
from itmfeat.cache.formats import archive, bring, send
from itmfeat.errors import DataError, ItmfeatError, MissingPackageError, UsageError

OWN = "image/own.archive.hdf5"


@pytest.fixture(scope="module")
def whole(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with every payload, types, empty items and an empty file."""
    cache = shutil.copytree(toy_cache, tmp_path_factory.mktemp("whole") / "toy")
    digest = read_index(cache / "dataset.h5").digest
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4, 60)
    count = int(lengths.sum())
    spec = FeatureSpec("image", "own", digest, lengths, 5, "int8", pooled_dim=3, boxed=True, range_items=16)
    with FeatureWriter(cache / "image" / "own.h5", spec) as writer:
        values = {
            "features": rng.standard_normal((count, 5)),
            "boxes": rng.random((count, 4)),
            "scores": rng.random(count),
        }
        for index in writer.pending:
            items = writer.items(index)
            rows = slice(writer.offsets[items.start], writer.offsets[items.stop])
            pooled = np.full((len(items), 3), index)
            writer.write(index, pooled=pooled, **{name: value[rows] for name, value in values.items()})
        writer.finish()
    empty = FeatureSpec("image", "empty", digest, np.zeros(60, np.int64), 5)
    write_features(cache / "image" / "empty.h5", empty, np.empty((0, 5), np.float32))
    large = FeatureSpec("text", "large", digest, np.full(300, 9), 300, "float32")  # several chunks, 3.2 MB
    write_features(cache / "text" / "large.h5", large, rng.standard_normal((2700, 300)).astype(np.float32))
    return cache


@pytest.fixture(scope="module")
def packed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return send("archive", whole, tmp_path_factory.mktemp("packed") / "toy")


@pytest.fixture
def own(packed: Path, at: Path) -> Path:
    """An archive to spoil, in the working folder: HDF5 writes external data there."""
    return shutil.copytree(packed, at / "packed")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_same_bytes_come_back(whole: Path, packed: Path, tmp_path: Path) -> None:
    names = {name.replace(".h5", ".archive.hdf5") for name in contents(whole)}
    assert contents(packed).keys() == names
    cache = archive.read(packed, tmp_path / "cache")
    assert contents(cache) == contents(whole)


def test_small_blocks(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK", 1000)  # less than a row of 300 numbers
    monkeypatch.setattr(archive, "BLOCK", 2500)
    folder = archive.write(whole, tmp_path / "packed", level=1)
    assert contents(archive.read(folder, tmp_path / "cache")) == contents(whole)


def test_equal_caches_give_equal_archives(whole: Path, packed: Path, tmp_path: Path) -> None:
    assert contents(archive.write(whole, tmp_path / "again")) == contents(packed)


def test_it_is_ordinary_hdf5(whole: Path, packed: Path) -> None:
    file = open_cache(whole).open("text", "large")
    with h5py.File(packed / "text" / "large.archive.hdf5") as found:
        expected = np.fromfile(file.path, "<f4", 2700 * 300, offset=file.extents["features"].offset)
        np.testing.assert_array_equal(found["features"][...], expected.reshape(2700, 300))
        assert found.attrs["digest"].decode() == file.digest


def test_what_is_there_stays_and_a_backbone_can_be_added(whole: Path, own: Path, tmp_path: Path) -> None:
    (own / OWN).unlink()
    times = {path: path.stat().st_mtime_ns for path in own.rglob("*.hdf5")}
    archive.write(whole, own)
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*.hdf5") if path != own / OWN} == times
    cache = archive.read(own, tmp_path / "cache")
    (cache / "image" / "own.h5").unlink()
    (cache / "text" / "words.h5.partial").write_bytes(b"left by a kill")
    (cache / "text" / "words.h5").unlink()
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.h5")}
    said: list[str] = []
    archive.read(own, cache, note=said.append)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(cache) == contents(whole)
    assert sum("kept, it holds the same" in text for text in said) == 3


def test_others_are_not_replaced(toy_cache: Path, whole: Path, own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert call("cache", "subset", other, "--cache", toy_cache, "--split", "test").exit_code == 0
    with pytest.raises(DataError, match="holds the archive of another dataset"):
        archive.write(other, own)
    with pytest.raises(DataError, match="other holds another dataset than"):
        archive.read(own, other)
    cache = shutil.copytree(whole, tmp_path / "cache")
    (cache / "image" / "own.h5").unlink()
    spec = FeatureSpec("image", "own", read_index(cache / "dataset.h5").digest, np.ones(60, np.int64), 5)
    write_features(cache / "image" / "own.h5", spec, np.ones((60, 5), np.float32))
    with pytest.raises(DataError, match=r"own\.archive\.hdf5 holds other features"):
        archive.write(cache, own)
    with pytest.raises(DataError, match=r"own\.h5 holds other features than"):
        archive.read(own, cache)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file; name a folder"):
        archive.write(whole, tmp_path / "file")
    for level in (0, 20):
        with pytest.raises(UsageError, match="--level must be 1 to 19"):
            archive.write(whole, tmp_path / "x", level=level)
    shutil.rmtree(own / "image")
    (own / "dataset.archive.hdf5").unlink()
    with pytest.raises(DataError, match="is no whole archive"):
        archive.read(own, tmp_path / "y")


def test_files_of_different_archives_do_not_mix(toy_cache: Path, own: Path, tmp_path: Path) -> None:
    assert call("cache", "subset", tmp_path / "other", "--cache", toy_cache, "--split", "test").exit_code == 0
    other = archive.write(tmp_path / "other", tmp_path / "packed other")
    shutil.copy(other / "image" / "grid.archive.hdf5", own / "image")
    with pytest.raises(DataError, match=r"grid\.archive\.hdf5 does not hold image features of toy"):
        archive.read(own, tmp_path / "cache")
    shutil.copy(own / "text" / "words.archive.hdf5", own / "image" / "grid.archive.hdf5")
    with pytest.raises(DataError, match="does not hold image features"):
        archive.read(own, tmp_path / "cache")
    assert not (tmp_path / "cache" / "image" / "grid.h5").exists()


def test_a_damaged_cache_is_not_packed(whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    path = cache / "image" / "own.h5"
    raw = bytearray(path.read_bytes())
    raw[open_cache(cache).open("image", "own").extents["boxes"].offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="items 0 to 15 are damaged"):
        archive.write(cache, tmp_path / "packed")
    with pytest.raises(DataError, match="is no whole archive"):
        archive.read(tmp_path / "packed", tmp_path / "back")


def broken(folder: Path, pattern: str, name: str = "own") -> None:
    """Importing is one sentence, and leaves nothing of the file."""
    target = folder.parent / "broken"
    with pytest.raises(DataError, match=pattern) as caught:
        archive.read(folder, target)
    assert "\n" not in str(caught.value)
    assert not list((target / "image").glob(f"{name}.h5*"))


def test_every_flipped_byte_is_found_or_means_nothing(own: Path, whole: Path, tmp_path: Path) -> None:
    path, good = own / OWN, (own / OWN).read_bytes()
    for other in {*own.glob("*/*.hdf5")} - {path}:
        other.unlink()
    rng, made = np.random.default_rng(0), tmp_path / "broken" / "image" / "own.h5"
    kept = 0
    for place in [*rng.integers(0, len(good), 60), *range(0, 40, 2)]:
        raw = bytearray(good)
        raw[place] ^= int(rng.integers(1, 256))
        path.write_bytes(raw)
        with suppress(DataError):
            archive.read(own, tmp_path / "broken")
        if made.exists():
            assert made.read_bytes() == (whole / "image" / "own.h5").read_bytes()
            made.unlink()
            kept += 1
    assert kept < 60
    for size in (0, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        broken(own, r"own\.archive\.hdf5 is damaged or no archive")


def with_dataset(**options: Any) -> Callable[[h5py.File], None]:
    """Replaces the features by a dataset that is stored otherwise."""

    def change(file: h5py.File) -> None:
        values, offset = file["features"][...], file["features"].attrs["offset"]
        del file["features"]
        given = {"shape": values.shape, "dtype": values.dtype, "data": values} | options
        file.create_dataset("features", **given).attrs["offset"] = offset

    return change


def linked(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["features"]
        file["features"] = link

    return change


def virtual(file: h5py.File) -> None:
    shape, dtype = file["features"].shape, file["features"].dtype
    del file["features"]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("elsewhere.h5", "features", shape)
    file.create_virtual_dataset("features", layout)


def with_chunk(frame: bytes, mask: int = 0) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["features"].id.write_direct_chunk((0, 0), frame, mask)

    return change


def moved(name: str, offset: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name].attrs["offset"] = offset

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def as_group(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features")


def frame(said: int, really: int) -> bytes:
    """A Zstandard frame of one run of zeros that claims another size."""
    head = b"\x28\xb5\x2f\xfd\xa0" + said.to_bytes(4, "little")
    return head + (really << 3 | 0b011).to_bytes(3, "little") + b"\0" * 16


ZSTD = {"shuffle": True, **hdf5plugin.Zstd(3)}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (with_dataset(), "not stored in chunks with shuffle and Zstandard"),
        (with_dataset(chunks=(8, 5)), "not stored in chunks with"),
        (with_dataset(chunks=(8, 5), compression="gzip"), "not stored in chunks with"),
        (with_dataset(chunks=(8, 5), **hdf5plugin.LZ4()), "not stored in chunks with"),
        (with_dataset(chunks=(8, 5), **hdf5plugin.Blosc2()), "not stored in chunks with"),
        (with_dataset(chunks=(8, 5), fletcher32=True, **ZSTD), "not stored in chunks with"),
        (with_dataset(external=[("other.bin", 0, 10**6)]), "not stored in chunks with"),
        (with_dataset(chunks=(2**18, 5), maxshape=(None, 5), **ZSTD), "is damaged"),
        (with_dataset(chunks=(8, 5), data=None, **ZSTD), "is damaged"),  # no chunk was ever written
        (with_dataset(dtype="f8", chunks=(8, 5), **ZSTD), "is damaged"),
        (with_dataset(dtype=h5py.string_dtype(), data=None, chunks=(8, 5), **ZSTD), "is damaged"),
        (with_dataset(shape=(3, 0), data=None, maxshape=(None, None), chunks=(8, 5), **ZSTD), "is damaged"),
        (linked(h5py.SoftLink("/boxes")), "features is no plain dataset"),
        (linked(h5py.ExternalLink("elsewhere.h5", "/x")), "features is no plain dataset"),
        (as_group, "features is no plain dataset"),
        (virtual, "not stored in chunks with"),
        (with_chunk(frame(1 << 31, 100)), "is damaged"),
        (with_chunk(frame(440, 10)), "is damaged"),
        (with_chunk(frame(440, 1 << 18)), "is damaged"),
        (with_chunk(b"\0" * 440), "is damaged"),
        (with_chunk(b"\0" * 440, mask=3), "is damaged"),
        (with_chunk(b"\x28"), "is damaged"),
        (moved("boxes", 0), "is damaged"),
        (moved("boxes", -4096), "is damaged"),
        (moved("boxes", 2**62), "is damaged"),
        (attribute("bytes", 2**60), "is damaged"),
        (attribute("bytes", -1), "is damaged"),
        (attribute("bytes", "many"), "is damaged"),
        (attribute("bytes", np.inf), "is damaged"),
        (attribute("archive", 2), "has layout 2, this version reads 1"),
        (attribute("archive", [1, 2]), "is damaged"),
    ],
)
def test_nothing_else_is_unpacked(own: Path, change: Callable[[h5py.File], None], pattern: str) -> None:
    with h5py.File(own / OWN, "r+") as file:
        change(file)
    broken(own, pattern)


def test_zstandard_frames_say_their_size() -> None:
    tail = bytes(18)
    assert archive._unpacked_bytes(frame(1 << 20, 1)) == 1 << 20
    magic = b"\x28\xb5\x2f\xfd"
    assert archive._unpacked_bytes(magic + b"\x20\x07" + tail) == 7
    assert archive._unpacked_bytes(magic + b"\x60\x07\x01" + tail) == 7 + 256 + 256
    assert archive._unpacked_bytes(magic + b"\xc0\x58\x07" + tail) == 7  # with a byte for the window
    assert archive._unpacked_bytes(magic + b"\x00\x58\x07" + tail) is None
    assert archive._unpacked_bytes(b"\x50\x2a\x4d\x18" + tail) is None


def test_an_interruption_leaves_nothing_half_written(
    whole: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = archive._blocks

    def stop(dataset: h5py.Dataset, spans: Any) -> Any:
        yield next(iter(real(dataset, spans)))
        if dataset.shape == (2700, 300):
            raise KeyboardInterrupt
        yield from list(real(dataset, spans))[1:]

    with monkeypatch.context() as patch:
        patch.setattr(archive, "_blocks", stop)
        with pytest.raises(KeyboardInterrupt):
            archive.write(whole, tmp_path / "packed")
        with pytest.raises(KeyboardInterrupt):
            archive.read(packed, tmp_path / "cache")
    for folder in (tmp_path / "packed", tmp_path / "cache"):
        assert not [path for path in folder.rglob("*") if "large" in path.name]
    with pytest.raises(DataError, match="is no whole archive"):
        archive.read(tmp_path / "packed", tmp_path / "x")
    assert contents(archive.write(whole, tmp_path / "packed")) == contents(packed)
    assert contents(archive.read(packed, tmp_path / "cache")) == contents(whole)


def test_one_process_at_a_time(whole: Path, packed: Path, tmp_path: Path) -> None:
    part = tmp_path / "cache" / "dataset.h5.partial"
    part.parent.mkdir()
    with part.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is writing .*dataset\.h5 right now"):
            archive.read(packed, tmp_path / "cache")
    assert contents(archive.read(packed, tmp_path / "cache")) == contents(whole)


def test_a_full_disk(whole: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(archive.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
        with pytest.raises(ItmfeatError, match=r"the disk of .* is full"):
            archive.write(whole, tmp_path / "packed")
        with pytest.raises(ItmfeatError, match=r"needs 0\.00 GB"):
            archive.read(packed, tmp_path / "cache")
    with monkeypatch.context() as patch:

        def full(*given: Any) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "pwrite", full)
        with pytest.raises(ItmfeatError, match="is full; make room and repeat the command, it goes on"):
            archive.read(packed, tmp_path / "cache")
    assert not list(tmp_path.rglob("*.partial"))


def test_the_package_is_named(whole: Path, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingPackageError, match=r"hdf5plugin: pip install 'itmfeat\[archive\]'"):
        archive.write(whole, at / "packed")
    fails(4, r"pip install 'itmfeat\[archive\]'", "cache", "import", "archive", "packed")
    assert not (at / "packed").exists()


def test_the_commands(whole: Path, at: Path) -> None:
    result = call("cache", "export", "archive", "shelf/toy", "--cache", whole, "--level", 9)
    assert (result.exit_code, result.stdout) == (0, "shelf/toy\n"), result.stderr
    result = call("cache", "import", "archive", "shelf/toy")
    assert "caches/toy: toy, digest" in result.stdout, result.output
    assert contents(at / "caches" / "toy") == contents(whole)
    assert bring("archive", at / "shelf" / "toy", at / "other") == at / "other"
    fails(3, "nowhere is no whole archive", "cache", "import", "archive", "nowhere")
    fails(2, "--level must be", "cache", "export", "archive", "x", "--cache", whole, "--level", 0)
    fails(2, "unknown parameter of archive 'dtype'", "cache", "import", "archive", "x", "--dtype", "int8")
    fails(3, "is no cache", "cache", "export", "archive", "x", "--cache", "nowhere")


@pytest.mark.slow
def test_killed_and_repeated(whole: Path, packed: Path, at: Path) -> None:
    finish_under_kills(["cache", "export", "archive", "out", "--cache", str(whole)], 4, (0.5, 2.5))
    assert contents(at / "out") == contents(packed)
    finish_under_kills(["cache", "import", "archive", "out", "--cache", "back"], 4, (0.5, 2.5))
    assert contents(at / "back") == contents(whole)


def test_the_page_names_what_an_archive_holds(packed: Path) -> None:
    page = (Path(archive.__file__).parents[1] / "README.md").read_text()
    section = page[page.index("## Archives") :]
    with h5py.File(packed / OWN) as file:
        names = {*file.attrs, *file["features"].attrs, archive.SKELETON}
    assert not [name for name in names if f"`{name}`" not in section]
    assert schema.PAYLOADS[0] in section
