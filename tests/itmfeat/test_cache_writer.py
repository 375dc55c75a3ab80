"""Caches in the making: begun by other versions, killed, written by two at once, on disks that fill up."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import HANG, call
from test_cache_integrity import COLUMNS, STRINGS

from itmfeat.cache import FeatureFile, FeatureSpec, FeatureWriter, read_index, write_index
from itmfeat.cache.journal import clear_finished, journal_of
from itmfeat.errors import DataError, ItmfeatError
from itmfeat.locks import lock_file


def spec(**changes: object) -> FeatureSpec:
    """Six items in three ranges."""
    given = {"kind": "text", "backbone": "b", "dataset": "d", "lengths": np.full(6, 2), "dim": 4}
    versions = json.dumps({"torch": "2.9.0", "numpy": "2.3"})
    return FeatureSpec(**(given | {"range_items": 2, "versions": versions} | changes))  # type: ignore[arg-type]


def fill(path: Path, given: FeatureSpec, stop: int | None = None) -> list[int]:
    """Write at most `stop` pending ranges; returns what was pending."""
    with FeatureWriter(path, given) as writer:
        pending = writer.pending
        for index in pending[:stop]:
            writer.write(index, features=np.full((4, 4), index))
        if stop is None:
            writer.finish()
    return pending


def test_other_library_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path, spec(), 1)
    newer = spec(versions=json.dumps({"torch": "2.10.0", "numpy": "2.3"}))
    sentence = (
        r"begun with torch 2\.9\.0, where now torch 2\.10\.0 .*; install torch 2\.9\.0 again .* or delete"
    )
    with pytest.raises(DataError, match=sentence):
        FeatureWriter(path, newer)
    with pytest.raises(DataError, match=r"settings: another fingerprint \(weights: .*, not x\); repeat"):
        FeatureWriter(path, spec(fingerprint='{"weights": "x"}'))
    with pytest.raises(DataError, match="other settings;"):
        FeatureWriter(path, spec(lengths=np.full(6, 3)))
    assert fill(path, spec()) == [1, 2]


def test_a_journal_of_rubbish_costs_only_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path, spec(), 2)
    with journal_of(path).open("ab") as journal:
        journal.write(b'\xff\xfe\n5\n[]\n{"range": "x", "sums": 3}\n{"range": 99, "sums": {}}\nnull\n\0\0\0')
    assert fill(path, spec()) == [2]
    assert FeatureFile(path).verify() == []


def test_what_kills_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "c" / "a.h5"
    fill(path, spec(), 1)
    path.with_name("a.h5.part.fresh").write_bytes(b"half")
    fill(path, spec())
    journal_of(path).write_text("left between the rename and the removal")
    (tmp_path / "c" / "dataset.h5.part").write_bytes(b"half")
    write_index(tmp_path / "c" / "dataset.h5", "toy", STRINGS, COLUMNS)
    clear_finished(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.h5", "dataset.h5"]
    (tmp_path / "c" / "dataset.h5.part").write_bytes(b"half")
    write_index(tmp_path / "c" / "dataset.h5", "toy", STRINGS, COLUMNS)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.h5", "dataset.h5"]


def test_what_a_living_process_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path, spec())
    held = lock_file(journal_of(path), os.O_RDWR | os.O_CREAT, "held")
    clear_finished(path)
    assert journal_of(path).exists()
    os.close(held)
    clear_finished(path)
    assert not journal_of(path).exists()


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path) -> None:
    """Between opening and locking, the holder may remove the file: who waited locks the new one."""
    path, flags = tmp_path / "a", os.O_RDWR | os.O_CREAT
    first = lock_file(path, flags, "held")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lock_file, path, flags, None)
        path.unlink()
        os.close(first)
        second = waiting.result(HANG)
    with pytest.raises(DataError, match="held right now"):
        lock_file(path, flags, "held")
    os.close(second)


def test_of_several_indexes_at_once_one_stays(tmp_path: Path) -> None:
    def write(number: int) -> str:
        try:
            columns = COLUMNS | {"caption_id": np.array([number, 100, 101])}
            return write_index(tmp_path / "dataset.h5", "toy", STRINGS, columns)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(write, range(24)))
    digest = read_index(tmp_path / "dataset.h5").digest
    assert said.count(digest) == 1
    assert sum("already holds toy with other images" in text for text in said) == 23
    with pytest.raises(DataError, match="already holds toy, not pets; choose another folder"):
        write_index(tmp_path / "dataset.h5", "pets", STRINGS, COLUMNS)
    assert [file.name for file in tmp_path.iterdir()] == ["dataset.h5"]


def test_an_import_beside_an_extraction_of_the_same_file(tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    np.save(source / "train_ims.npy", np.ones((2, 3, 4), np.float32))
    (source / "train_caps.txt").write_text("a\nb\n")
    path = cache / "image" / "butd36.h5"
    with FeatureWriter(path, spec()):
        second = call("cache", "import", "precomp", source, "--cache", cache)
    assert second.exit_code == 3
    sentence = f"error: another extraction is writing {path} right now; wait for it or stop it"
    assert second.stderr.splitlines()[-1] == sentence


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one 8 MB of memory; `mount -o remount,size=` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # an error may still hold a file open


def test_a_disk_that_fills_up(disk: Path, tmp_path: Path) -> None:
    large = spec(lengths=np.full(6, 125), dim=1000)  # 1.5 MB in three ranges

    def write(path: Path) -> None:
        with FeatureWriter(path, large) as writer:
            for index in writer.pending:
                writer.write(index, features=np.full((250, 1000), index))
                others = disk / "others"
                if not others.exists() and path.parent == disk:
                    free = shutil.disk_usage(disk).free - 200_000
                    with others.open("wb") as file:
                        os.posix_fallocate(file.fileno(), 0, free)
            writer.finish()

    path = disk / "a.h5"
    with pytest.raises(ItmfeatError, match=r"the disk of .*a.h5 is full; make room and repeat"):
        write(path)
    with pytest.raises(ItmfeatError, match=r"needs 4 MB and 0 MB are free"):
        write(path)
    (disk / "others").write_bytes(b"")
    write(path)
    write(tmp_path / "whole.h5")
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(file.name for file in disk.iterdir()) == ["a.h5", "others"]
    (disk / "others").unlink()


@pytest.mark.parametrize("size", ["4k", "64k", "400k"])
def test_an_index_on_a_full_disk(disk: Path, size: str) -> None:
    with (disk / "others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (8 << 20) - int(size[:-1]) * 1024)
    strings = STRINGS | {"caption": ["x" * 500_000, "y", "z"]}
    with pytest.raises(ItmfeatError, match=r"the disk of .*dataset.h5 is full; make room and repeat"):
        write_index(disk / "dataset.h5", "toy", strings, COLUMNS)
    assert [file.name for file in disk.iterdir()] == ["others"]
    (disk / "others").unlink()
    write_index(disk / "dataset.h5", "toy", strings, COLUMNS)
