"""The cache: same bytes however often interrupted, every flipped byte found, gathers equal to slices."""

import json
import os
import random
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from itmfeat.cache import (
    FeatureFile,
    FeatureSpec,
    FeatureWriter,
    Gather,
    open_cache,
    quantize,
    schema,
    verify,
)
from itmfeat.cache.index import read_index, write_index
from itmfeat.cache.journal import Entries, Journal
from itmfeat.cache.seal import write_seal
from itmfeat.errors import DataError, ItmfeatError, UsageError

IMAGES, CAPTIONS, DIM = 30, 150, 16
LENGTHS = np.random.default_rng(1).integers(1, 9, CAPTIONS)


def make_index(folder: Path, name: str = "toy") -> str:
    strings = {
        "image_id": [str(i) for i in range(IMAGES)],
        "image_file": [f"{i}.jpg" for i in range(IMAGES)],
        "caption": [f"a “quoted” caption, {i}" for i in range(CAPTIONS)],
    }
    columns = {
        "image_split": np.repeat([0, 1, 2], 10).astype(np.uint8),
        "caption_id": np.arange(CAPTIONS, dtype=np.int64) + 7,
        "caption_image": np.arange(CAPTIONS, dtype=np.int64) // 5,
    }
    return write_index(folder / "dataset.h5", name, strings, columns)


def spec(dataset: str, **changes: object) -> FeatureSpec:
    given = {"kind": "text", "backbone": "toy", "dataset": dataset, "lengths": LENGTHS, "dim": DIM}
    return FeatureSpec(**(given | {"range_items": 16, "pooled_dim": 4} | changes))  # type: ignore[arg-type]


def content(index: int, vectors: int, items: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "features": rng.standard_normal((vectors, DIM)).astype(np.float32),
        "pooled": rng.standard_normal((items, 4)).astype(np.float32),
    }


def fill(path: Path, given: FeatureSpec, stop: int | None = None) -> list[int]:
    """Write at most `stop` of the pending ranges; returns what was pending."""
    with FeatureWriter(path, given) as writer:
        pending = writer.pending
        for index in pending[:stop]:
            items = writer.items(index)
            vectors = int(given.lengths[items.start : items.stop].sum())
            payloads = content(index, vectors, len(items))
            writer.write(index, **{k: v for k, v in payloads.items() if k != "pooled" or given.pooled_dim})
        if stop is None:
            writer.finish()
    return pending


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    fill(folder / "text" / "toy.h5", spec(make_index(folder)))
    return folder


def test_reads_back_what_was_written(cache: Path) -> None:
    found = open_cache(cache).open("text")
    gathered = Gather(found)(torch.tensor([3, 0, 3, CAPTIONS - 1]))
    assert gathered.lengths.tolist() == [LENGTHS[3], LENGTHS[0], LENGTHS[3], LENGTHS[-1]]
    first = content(0, int(LENGTHS[:16].sum()), 16)["features"].astype(np.float16)
    start = int(LENGTHS[:3].sum())
    stored = gathered.vectors[0, : LENGTHS[3]].numpy()
    np.testing.assert_array_equal(stored, first[start : start + LENGTHS[3]])
    assert gathered.vectors[0, LENGTHS[3] :].abs().sum() == 0
    assert found.array("pooled").shape == (CAPTIONS, 4)


def test_index_round_trip(cache: Path) -> None:
    index = open_cache(cache).index
    assert index.caption[3] == "a “quoted” caption, 3"
    assert index.caption_id[0] == 7
    assert index.split_sizes() == {"train": (10, 50), "val": (10, 50), "test": (10, 50)}
    with pytest.raises(IndexError):
        index.caption[CAPTIONS]


@pytest.mark.parametrize("stops", [(0,), (1, 3), (9,), (2, 2, 2, 2)])
def test_interrupted_is_byte_identical(tmp_path: Path, cache: Path, stops: tuple[int, ...]) -> None:
    other = tmp_path / "other"
    digest = make_index(other)
    done = 0
    for stop in stops:
        assert len(fill(other / "text" / "toy.h5", spec(digest), stop)) == 10 - done
        done += stop
    fill(other / "text" / "toy.h5", spec(digest))
    for name in ("dataset.h5", "text/toy.h5"):
        assert (other / name).read_bytes() == (cache / name).read_bytes()
    assert sorted(p.name for p in (other / "text").iterdir()) == ["toy.h5"]


def test_a_torn_journal_line_costs_one_range(tmp_path: Path) -> None:
    path = tmp_path / "text" / "toy.h5"
    fill(path, spec("d"), 4)
    journal = path.with_name("toy.h5.journal")
    journal.write_bytes(journal.read_bytes()[:-30])
    assert fill(path, spec("d")) == [3, 4, 5, 6, 7, 8, 9]
    assert FeatureFile(path).verify() == []


def test_a_logged_range_that_did_not_reach_the_disk_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "text" / "toy.h5"
    fill(path, spec("d"), 4)
    part = path.with_name("toy.h5.part")
    with h5py.File(part) as file:
        offset = file["features"].id.get_offset()
    with part.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(64))
    assert fill(path, spec("d"))[0] == 0
    assert FeatureFile(path).verify() == []


@pytest.mark.parametrize("place", [0, 60, 500, 3000, -1])
def test_a_kill_while_sealing_loses_nothing(tmp_path: Path, cache: Path, place: int) -> None:
    path = tmp_path / "other" / "text" / "toy.h5"
    given = spec(make_index(tmp_path / "other"))
    with FeatureWriter(path, given) as writer:
        for index in writer.pending:
            items = writer.items(index)
            vectors = int(LENGTHS[items.start : items.stop].sum())
            writer.write(index, **content(index, vectors, len(items)))
    part = path.with_name("toy.h5.part")
    raw = bytearray(part.read_bytes())
    raw[place] ^= 0xFF  # half-written metadata
    part.write_bytes(raw)
    fill(path, given)
    assert path.read_bytes() == (cache / "text" / "toy.h5").read_bytes()


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "text" / "toy.h5"
    fill(path, spec("d"), 2)
    with pytest.raises(DataError, match=r"other settings: another dtype \(float16, not \w+\); repeat"):
        FeatureWriter(path, spec("d", dtype="float32"))


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "text" / "toy.h5"
    with FeatureWriter(path, spec("d")), pytest.raises(DataError, match="right now"):
        FeatureWriter(path, spec("d"))
    assert isinstance(FeatureWriter(path, spec("d")).pending, list)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FeatureWriter(tmp_path / "toy.h5", spec("d"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ItmfeatError, match=r"disk .* is full"):
        writer.write(0, **content(0, int(LENGTHS[:16].sum()), 16))


def test_no_room_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ItmfeatError, match="MB are free"):
        FeatureWriter(tmp_path / "toy.h5", spec("d", lengths=np.full(1000, 100), dim=10**9))


def test_infinite_values_are_refused(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "toy.h5", spec("d"))
    payloads = content(0, int(LENGTHS[:16].sum()), 16)
    payloads["features"][3, 3] = 1e6
    with pytest.raises(ItmfeatError, match="float32"):
        writer.write(0, **payloads)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("value", "file"), [(torch.inf, "float32"), (-torch.inf, "float16"), (65536.0, "float16")]
)
def test_what_a_file_cannot_hold_is_refused_in_any_precision(
    tmp_path: Path, dtype: str, value: float, file: str
) -> None:
    with FeatureWriter(tmp_path / "x.h5", spec(make_index(tmp_path), dtype=file)) as writer:
        first, last = (int(writer.offsets[place]) for place in (0, 16))
        values = torch.zeros(last - first, DIM, dtype=getattr(torch, dtype))
        values[3, 5] = value
        with pytest.raises(ItmfeatError, match="cannot hold in items 0 to 15"):
            writer.write(0, features=values, pooled=torch.zeros(16, 4))


def test_int8_is_close_and_zero_stays_zero(tmp_path: Path) -> None:
    path = tmp_path / "text" / "toy.h5"
    fill(path, spec("d", dtype="int8", pooled_dim=0))
    full = content(0, int(LENGTHS[:16].sum()), 16)["features"]
    found = Gather(FeatureFile(path))(torch.tensor([0, 1])).wide()
    np.testing.assert_allclose(found[0, : LENGTHS[0]], full[: LENGTHS[0]], atol=0.02)
    small, scales = quantize(np.zeros((2, 4)))
    assert small.any() == scales.any() == False  # noqa: E712


def test_uniform_items_gather_as_one_row(tmp_path: Path) -> None:
    path = tmp_path / "image" / "toy.h5"
    fill(path, spec("d", lengths=np.full(40, 3), dtype="float32"))
    found = FeatureFile(path)
    assert found.uniform == 3
    vectors = Gather(found)(torch.tensor([5, 39, 5])).vectors
    assert np.array_equal(vectors, found.array().reshape(40, 3, DIM)[[5, 39, 5]])


def test_every_flipped_byte_is_found(cache: Path) -> None:
    path = cache / "text" / "toy.h5"
    raw = path.read_bytes()
    rng = random.Random(0)
    for place in [*range(16), *rng.sample(range(len(raw)), 120)]:
        flipped = bytearray(raw)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert verify(cache), f"byte {place}"
    path.write_bytes(raw)
    assert verify(cache) == []


def test_verify_names_the_items(cache: Path) -> None:
    path = cache / "text" / "toy.h5"
    offset = FeatureFile(path).extents["features"].row(int(LENGTHS[:20].sum()))
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    assert verify(cache) == [f"{path}: items 16 to 31 are damaged; delete it and extract again"]


@pytest.mark.parametrize("size", [0, 100, 4096, -1])
def test_truncation_is_one_sentence(cache: Path, size: int) -> None:
    for name in ("dataset.h5", "text/toy.h5"):
        raw = (cache / name).read_bytes()
        (cache / name).write_bytes(raw[:size])
        with pytest.raises(DataError):
            open_cache(cache).open("text")
        (cache / name).write_bytes(raw)


def test_another_dataset_is_refused(tmp_path: Path, cache: Path) -> None:
    make_index(tmp_path / "b", "another")
    (tmp_path / "b" / "text").mkdir()
    (tmp_path / "b" / "text" / "toy.h5").write_bytes((cache / "text" / "toy.h5").read_bytes())
    with pytest.raises(DataError, match="another dataset"):
        open_cache(tmp_path / "b").open("text")
    with pytest.raises(DataError, match="already holds toy, not another; choose"):
        make_index(cache, "another")


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(
        ItmfeatError, match=r"a cannot become a cache \(.+\): choose another folder with --cache"
    ):
        make_index(tmp_path / "a", "toy")


def test_unfinished_and_missing(tmp_path: Path) -> None:
    digest = make_index(tmp_path)
    fill(tmp_path / "text" / "toy.h5", spec(digest), 2)
    found = open_cache(tmp_path)
    with pytest.raises(DataError, match="no finished text"):
        found.open("text")
    with pytest.raises(DataError, match="not finished"):
        found.open("text", "toy")
    with pytest.raises(UsageError, match="unknown text backbone"):
        found.open("text", "toys")
    with pytest.raises(DataError, match="no cache"):
        open_cache(tmp_path / "nothing")


def test_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((4, 4), np.float16)
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
    with pytest.raises(DataError, match="no plain dataset"):
        FeatureFile(tmp_path / "evil.h5")


def test_links_of_a_sealed_file_are_refused(cache: Path, tmp_path: Path) -> None:
    """Whoever makes a file can also seal it."""
    path = cache / "dataset.h5"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["caption_id"] = np.arange(3)
    with h5py.File(path, "r+") as file:
        del file["caption_id"]
        file["caption_id"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "caption_id")
        place = schema.extent(file, "seal", path)
    assert place is not None
    write_seal(path, [], place)
    with pytest.raises(DataError, match="caption_id is no plain dataset"):
        read_index(path)


def test_chunked_data_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((4, 4), np.float16), compression="gzip")
    with pytest.raises(DataError, match="contiguously"):
        FeatureFile(tmp_path / "a.h5")


def test_journal_says_what_it_knows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.journal")
    assert journal.read() == Entries()
    journal.begin("id", {"dtype": "int8"})
    journal.finish_range(3, {"features": "aa"})
    assert journal.read() == Entries("id", {"dtype": "int8"}, {3: {"features": "aa"}})
    lines = [line for line in (tmp_path / "x.journal").read_text().splitlines() if line]
    assert json.loads(lines[1]) == {"range": 3, "sums": {"features": "aa"}}
    journal.remove()
    assert not (tmp_path / "x.journal").exists()


def test_same_index_again_is_fine(cache: Path) -> None:
    before = (cache / "dataset.h5").stat().st_mtime_ns
    assert make_index(cache) == read_index(cache / "dataset.h5").digest
    assert (cache / "dataset.h5").stat().st_mtime_ns == before
