"""Folders of clip-retrieval from caches: there and back, means, the own vector, and what cannot be one."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import vectors, write_features
from processes import call, fails

from itmfeat.cache import FeatureSpec, FeatureWriter, open_cache, read_index, write_index
from itmfeat.cache.formats import clip_retrieval, send, target
from itmfeat.errors import DataError, ItmfeatError, UsageError


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(clip_retrieval, "SHARD", 4)
    monkeypatch.setattr(clip_retrieval, "BLOCK", 3)
    cache = tmp_path / "cache"
    digest = write_index(
        cache / "dataset.h5",
        "toy",
        {
            "image_id": ["x", "y", "z"],
            "image_file": ["", "y.jpg", "z.jpg"],
            "caption": [*"abcdefghi", "ä\n“"],
        },
        {
            "image_split": np.array([2, 0, 1], np.uint8),
            "caption_id": np.arange(10)[::-1] * 7,
            "caption_image": np.array([0, 0, 1, 1, 1, 1, 1, 1, 2, 2]),
        },
    )
    for kind, items in (("image", 3), ("text", 10)):
        spec = FeatureSpec(kind, "clip", digest, np.ones(items, np.int64), 4, dtype)
        write_features(
            cache / kind / "clip.h5", spec, np.random.default_rng(items).standard_normal((items, 4))
        )
    there = send("clip-retrieval", cache, tmp_path / "there")
    names = [path.relative_to(there).as_posix() for path in sorted(there.rglob("*.*"))]
    assert names == [
        *(f"img_emb/img_emb_{number}.npy" for number in range(3)),
        *(f"metadata/metadata_{number}.parquet" for number in range(3)),
        *(f"text_emb/text_emb_{number}.npy" for number in range(3)),
    ]
    assert np.load(there / "img_emb" / "img_emb_0.npy").dtype == dtype
    back = clip_retrieval.read(there, tmp_path / "back", name="toy")
    assert read_index(back / "dataset.h5").digest == digest
    for kind in ("image", "text"):
        np.testing.assert_array_equal(vectors(back, kind), vectors(cache, kind))
        assert vectors(back, kind).dtype == dtype


def test_means_are_exported_where_items_have_many_vectors(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_retrieval, "MEANS", 7)
    out = clip_retrieval.write(toy_cache, tmp_path / "out")
    found = open_cache(toy_cache)
    for stem, kind in (("img_emb", "image"), ("text_emb", "text")):
        file = found.open(kind)
        values = vectors(toy_cache, kind).astype(np.float32)
        means = np.stack([part.mean(axis=0) for part in np.split(values, file.offsets[1:-1])])
        if kind == "image":
            means = means[found.index.caption_image]
        rows = np.load(out / stem / f"{stem}_0.npy")
        assert rows.dtype == np.float16
        np.testing.assert_allclose(rows, means, rtol=1e-3, atol=1e-4)
    rows = pq.read_table(out / "metadata" / "metadata_0.parquet").to_pylist()
    assert rows[7] == {
        "image_id": "1",
        "image_path": "1.png",
        "caption": "caption 7",
        "caption_id": 7,
        "split": "train",
    }
    assert len(rows) == 300


def test_the_backbones_own_vector_is_exported_where_there_is_one(toy_cache: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(toy_cache, tmp_path / "cache")
    index = read_index(cache / "dataset.h5")
    rng = np.random.default_rng(0)
    pooled = rng.standard_normal((60, 3)).astype(np.float32)
    spec = FeatureSpec("image", "own", index.digest, np.full(60, 2), 4, "float32", pooled_dim=3)
    with FeatureWriter(cache / "image" / "own.h5", spec) as writer:
        writer.write(0, features=np.zeros((120, 4), np.float32), pooled=pooled)
        writer.finish()
    small = FeatureSpec("image", "small", index.digest, np.ones(60, np.int64), 4, "int8")
    values = rng.standard_normal((60, 4)).astype(np.float32)
    write_features(cache / "image" / "small.h5", small, values)
    out = clip_retrieval.write(cache, tmp_path / "own", image_backbone="own")
    np.testing.assert_array_equal(np.load(out / "img_emb" / "img_emb_0.npy"), pooled[index.caption_image])
    out = clip_retrieval.write(cache, tmp_path / "small", image_backbone="small")
    rows = np.load(out / "img_emb" / "img_emb_0.npy")
    assert rows.dtype == np.float16
    np.testing.assert_allclose(rows, values[index.caption_image], atol=0.02)
    with pytest.raises(UsageError, match="choose --image-backbone"):
        clip_retrieval.write(cache, tmp_path / "which")
    huge = FeatureSpec("image", "huge", index.digest, np.ones(60, np.int64), 4, "int8")
    write_features(cache / "image" / "huge.h5", huge, values * 1e6)
    with pytest.raises(DataError, match="beyond float16"):
        clip_retrieval.write(cache, tmp_path / "which", image_backbone="huge")
    shutil.rmtree(cache / "text")
    out = clip_retrieval.write(cache, tmp_path / "no texts", image_backbone="own")
    assert not (out / "text_emb").exists()


def test_what_cannot_be_exported(toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="full exists already"):
        clip_retrieval.write(toy_cache, tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr(target.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
        with pytest.raises(ItmfeatError, match=r"0\.00 GB are free"):
            clip_retrieval.write(toy_cache, tmp_path / "out")
    left = tmp_path / "out.part" / "img_emb" / "img_emb_7.npy"
    left.parent.mkdir(exist_ok=True)
    left.touch()  # as an interrupted export of more shards leaves it
    clip_retrieval.write(toy_cache, tmp_path / "out")
    assert len(list((tmp_path / "out" / "img_emb").iterdir())) == 1
    assert not (tmp_path / "out.part").exists()
    cache = shutil.copytree(toy_cache, tmp_path / "cache")
    path = cache / "text" / "words.h5"
    raw = bytearray(path.read_bytes())
    raw[open_cache(cache).open("text").extents["features"].offset + 5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="items 0 to 127 are damaged"):
        clip_retrieval.write(cache, tmp_path / "damaged")
    index = {
        "image_split": np.zeros(2, np.uint8),
        "caption_id": np.array([0]),
        "caption_image": np.array([0]),
    }
    names = {"image_id": ["a", "b"], "image_file": ["", ""], "caption": ["c"]}
    digest = write_index(tmp_path / "bare" / "dataset.h5", "bare", names, index)
    spec = FeatureSpec("image", "clip", digest, np.ones(2, np.int64), 4)
    write_features(tmp_path / "bare" / "image" / "clip.h5", spec, np.ones((2, 4), np.float32))
    with pytest.raises(DataError, match=r"1 images of .*bare have no caption"):
        clip_retrieval.write(tmp_path / "bare", tmp_path / "y")


def test_the_commands(toy_cache: Path, at: Path) -> None:
    result = call("cache", "export", "clip-retrieval", "clip", "--cache", toy_cache)
    assert (result.exit_code, result.stdout) == (0, "clip\n"), result.stderr
    result = call("cache", "import", "clip-retrieval", "clip", "--name", "toy", "--backbone", "mean")
    assert "image mean: 60 items, 60 vectors x 12 float16" in result.stdout, result.output
    assert "train 40 images, 200 captions" in result.stdout
    fails(3, "exists already", "cache", "export", "clip-retrieval", "clip", "--cache", toy_cache)
    fails(
        2,
        "unknown parameter of clip-retrieval 'level'",
        *("cache", "export", "clip-retrieval", "x", "--cache", toy_cache, "--level", 3),
    )
    fails(3, "is no folder of clip-retrieval", "cache", "import", "clip-retrieval", "nowhere")
    fails(2, "leave out the fractions", "cache", "import", "clip-retrieval", "clip", "--test-fraction", 1)


@pytest.mark.slow
def test_training_on_it(toy_cache: Path, at: Path) -> None:
    clip_retrieval.read(clip_retrieval.write(toy_cache, at / "clip"), at / "caches" / "toy")
    run = call(
        *("train", "--loss", "infonce", "--cache", "caches/toy", "--epochs", 1, "--batch-size", 20),
        *("--head", "mean-linear", "--set", "head.dim=8", "--json"),
    )
    assert run.exit_code == 0, run.output
