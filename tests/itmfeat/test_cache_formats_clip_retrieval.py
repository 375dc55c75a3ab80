"""Folders of clip-retrieval: pairs become images with captions, every number stays."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import vectors
from processes import fails

from itmfeat.cache import FeatureWriter, open_cache, read_index, verify
from itmfeat.cache.formats import bring, clip_retrieval
from itmfeat.errors import DataError, MissingPackageError, UsageError
from itmfeat_extract.corpus import SplitFractions
from itmfeat_extract.corpus.splits import draw

DIM = {"img_emb": 6, "text_emb": 5}
# Two shards whose numbers sort otherwise as text; the captions of b.jpg lie in both.
PATHS = {"2": ["b.jpg", "a.jpg", "b.jpg"], "10": ["c.jpg", "b.jpg"]}
SPLITS = {"a.jpg": "train", "b.jpg": "test", "c.jpg": "validation"}


def vector(name: str, dim: int, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(list(name.encode())).standard_normal(dim).astype(dtype)


def save(path: Path, rows: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows, **options)


def table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: cells for name, cells in columns.items() if cells is not None}), path)


def rows_of(paths: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    return {
        number: {
            "image_path": names,
            "caption": [f"{number}.{row} of {name}" for row, name in enumerate(names)],
        }
        for number, names in paths.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "embeddings"
    for number, columns in rows_of(PATHS).items():
        plant(made, number, columns | {"split": [SPLITS[name] for name in columns["image_path"]]})
    return made


def plant(made: Path, number: str, columns: dict[str, Any], dtype: str = "float16") -> None:
    table(made / "metadata" / f"metadata_{number}.parquet", **columns)
    for stem, key in (("img_emb", "image_path"), ("text_emb", "caption")):
        rows = [vector(name, DIM[stem], dtype) for name in columns[key]]
        save(made / stem / f"{stem}_{number}.npy", np.stack(rows))


def test_rows_of_one_image_are_its_captions(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cache = bring("clip-retrieval", folder, tmp_path / "cache", name="toy", note=said.append)
    index = read_index(cache / "dataset.h5")
    assert index.name == "toy"
    assert index.image_id.tolist() == index.image_file.tolist() == ["b.jpg", "a.jpg", "c.jpg"]
    assert index.image_split.tolist() == [2, 0, 1]
    captions = ["2.0 of b.jpg", "2.2 of b.jpg", "10.1 of b.jpg", "2.1 of a.jpg", "10.0 of c.jpg"]
    assert index.caption.tolist() == captions
    assert index.caption_image.tolist() == [0, 0, 0, 1, 2]
    expected = np.stack([vector(name, 6) for name in index.image_id.tolist()])
    np.testing.assert_array_equal(vectors(cache, "image"), expected)
    np.testing.assert_array_equal(vectors(cache, "text"), np.stack([vector(name, 5) for name in captions]))
    assert vectors(cache, "image").dtype == vectors(cache, "text").dtype == np.float16
    assert verify(cache) == []
    assert said == [f"{folder}: 3 images, 5 captions"]
    file = open_cache(cache).open("image", "clip")
    assert file.fingerprint["format"] == "clip-retrieval"


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [("float32", None, "float32"), ("float64", None, "float32"), ("float32", "float16", "float16")],
)
def test_types_stay_unless_asked(tmp_path: Path, stored: str, asked: str | None, expected: str) -> None:
    columns = rows_of({"0000": ["a.jpg", "b.jpg"]})["0000"] | {"split": ["dev", "test"]}
    plant(tmp_path / "one", "0000", columns, stored)
    cache = clip_retrieval.read(tmp_path / "one", tmp_path / "cache", dtype=asked)
    assert vectors(cache, "image").dtype == expected
    wide = np.stack([vector(name, 6, stored) for name in columns["image_path"]])
    np.testing.assert_array_equal(vectors(cache, "image"), wide.astype(expected))


def test_without_texts_there_are_only_images(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "text_emb")
    cache = clip_retrieval.read(folder, tmp_path / "cache")
    assert (open_cache(cache).backbones("image"), open_cache(cache).backbones("text")) == (["clip"], [])


def test_ids_come_before_paths_and_may_be_numbers(tmp_path: Path) -> None:
    columns = rows_of({"0": ["a.jpg", "a.jpg"]})["0"]
    made = tmp_path / "one"
    columns |= {"split": ["val", "val"], "image_id": [7, 8]}
    plant(made, "0", columns | {"caption_id": [30, 20], "caption": ["a.jpg", ""]})
    said: list[str] = []
    index = read_index(clip_retrieval.read(made, tmp_path / "cache", note=said.append) / "dataset.h5")
    assert index.image_id.tolist() == ["7", "8"]
    assert index.caption.tolist() == ["a.jpg", ""]
    assert index.caption_id.tolist() == [30, 20]
    assert said[-1].endswith("2 images, 2 captions, 1 of them empty")
    plant(made, "0", columns | {"caption_id": [30, 30]})
    index = read_index(clip_retrieval.read(made, tmp_path / "again") / "dataset.h5")
    assert index.caption_id.tolist() == [0, 1]
    for wrong in ([[30], [20]], ["30#0", "20#1"], [None, 20]):  # lists, texts, gaps: running numbers
        plant(made, "0", columns | {"caption_id": wrong})
        shutil.rmtree(tmp_path / "again")
        index = read_index(clip_retrieval.read(made, tmp_path / "again") / "dataset.h5")
        assert index.caption_id.tolist() == [0, 1]


def many(folder: Path, images: int = 20) -> Path:
    names = [f"{row}.jpg" for row in range(images)]
    plant(folder, "0", {"image_path": names, "caption": names})
    return folder


def test_splits_are_drawn_as_the_extractor_draws_them(tmp_path: Path) -> None:
    source, said = many(tmp_path / "many"), []
    index = read_index(clip_retrieval.read(source, tmp_path / "a", note=said.append) / "dataset.h5")
    names = [("train", "val", "test")[code] for code in index.image_split]
    assert names == draw(20, SplitFractions(val=0.1, test=0.1, seed=0))
    assert any("drawn with seed 0: 16 images train, 2 val, 2 test" in text for text in said)
    made = clip_retrieval.read(source, tmp_path / "b", val_fraction=0.0, test_fraction=1.0)
    assert read_index(made / "dataset.h5").split_sizes()["test"] == (20, 20)
    made = clip_retrieval.read(many(tmp_path / "odd", 3), tmp_path / "d", val_fraction=0.5, test_fraction=0.5)
    assert read_index(made / "dataset.h5").split_sizes()["train"] == (0, 0)
    made = clip_retrieval.read(source, tmp_path / "c", split_seed=1)
    assert read_index(made / "dataset.h5").image_split.tolist() != index.image_split.tolist()


def test_wrong_options(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says the split of each row: leave out"):
        clip_retrieval.read(folder, tmp_path / "x", val_fraction=0.2)
    source = many(tmp_path / "many")
    for wrong in (
        {"val_fraction": -0.1},
        {"val_fraction": 0.6, "test_fraction": 0.6},
        {"test_fraction": 1.0},
    ):
        with pytest.raises(UsageError, match="no more than 1 together"):
            clip_retrieval.read(source, tmp_path / "x", **wrong)
    with pytest.raises(UsageError, match="--split-seed"):
        clip_retrieval.read(source, tmp_path / "x", split_seed=-1)
    with pytest.raises(DataError, match="2 images are too few to split"):
        clip_retrieval.read(many(tmp_path / "two", 2), tmp_path / "x")
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        clip_retrieval.read(source, tmp_path / "x", dtype="int4")
    with pytest.raises(UsageError, match="plain name"):
        clip_retrieval.read(source, tmp_path / "x", backbone="../x")
    assert not (tmp_path / "x").exists()


def refused(folder: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as caught:
        clip_retrieval.read(folder, folder.parent / "refused")
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "refused").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        (np.zeros((2, 6), "f2"), r"metadata_2\.parquet has 3 rows and .*img_emb_2\.npy 2"),
        (np.zeros((4, 6), "f2"), r"metadata_2\.parquet has 3 rows and .*img_emb_2\.npy 4"),
        (np.zeros((3, 7), "f2"), "vectors of 6 numbers, others of 7"),
        (np.zeros((3, 6, 1), "f2"), r"not floats \(rows, dim\)"),
        (np.zeros((3, 6), "i8"), r"holds int64 .* not floats"),
        (np.zeros((0, 6), "f2"), r"not floats"),
        (np.full((3, 6), np.nan, "f2"), r"img_emb_2\.npy: row 0 holds values that are no numbers"),
        (np.array([[0] * 6, [np.inf] * 6, [0] * 6], "f4"), "row 1 holds values that are no numbers"),
        (np.array([[1] * 6, [0] * 6, [1.1] * 6], "f4"), "row 2 differs from the first row of the same image"),
        (np.array([Evil()] * 3, object), r"no plain \.npy"),
    ],
)
def test_arrays_that_do_not_fit(folder: Path, at: Path, rows: np.ndarray, pattern: str) -> None:
    save(folder / "img_emb" / "img_emb_2.npy", rows, allow_pickle=True)
    refused(folder, pattern)
    assert not (at / "evil").exists()


def test_rounding_of_half_precision_is_no_other_vector(folder: Path, tmp_path: Path) -> None:
    path = folder / "img_emb" / "img_emb_10.npy"
    rows = np.load(path)
    rows[1] *= np.float16(1.005)
    save(path, rows)
    cache = clip_retrieval.read(folder, tmp_path / "cache")
    np.testing.assert_array_equal(vectors(cache, "image")[0], vector("b.jpg", 6))
    rows[1] *= np.float16(1.02)
    save(path, rows)
    refused(folder, r"img_emb_10\.npy: row 1 differs")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"caption": None}, "has the columns image_path, split, and an import needs caption"),
        ({"image_path": None}, "an import needs caption and one of image_id, image_path, key, url"),
        ({"url": ["u"] * 3}, "have different columns"),
        ({"image_path": ["b.jpg", None, "b.jpg"]}, r"metadata_2\.parquet, row 1 has no image_path"),
        ({"split": ["test", "train", "val"]}, "row 2: image b.jpg is in val here and elsewhere"),
        ({"split": ["test", None, "test"]}, "row 1 has the split None; it must be one of train, val, test"),
        ({"split": ["TEST", "a", "test"]}, "row 0 has the split 'TEST'"),
        ({"caption": [["a"], ["b"], ["c"]]}, r"metadata_2\.parquet is damaged or no Parquet table of texts"),
        ({"split": [["test"]] * 3}, "is damaged or no Parquet table of texts"),
        ({"caption": [b"\xff"] * 3}, "is damaged or no Parquet table of texts"),
    ],
)
def test_tables_that_do_not_fit(folder: Path, change: dict[str, Any], pattern: str) -> None:
    columns = rows_of(PATHS)["2"] | {"split": ["test", "train", "test"]} | change
    table(folder / "metadata" / "metadata_2.parquet", **columns)
    if "url" in change:
        pattern = "metadata_10.* have different columns"
    refused(folder, pattern)


def test_damaged_tables(folder: Path) -> None:
    path = folder / "metadata" / "metadata_10.parquet"
    raw = path.read_bytes()
    for wrong in (b"", b"PAR1", raw[: len(raw) // 2], raw[:-1]):
        path.write_bytes(wrong)
        refused(folder, r"metadata_10\.parquet is damaged or no Parquet table")
    path.write_bytes(raw[:4] + bytes(200) + raw[204:])
    refused(folder, r"metadata_10\.parquet is damaged|row 0 has no image_path|split")


def test_shards_that_are_not_complete(folder: Path, tmp_path: Path) -> None:
    (folder / "text_emb" / "text_emb_2.npy").unlink()
    refused(folder, "shard 2 is not complete")
    shutil.copy(folder / "text_emb" / "text_emb_10.npy", folder / "text_emb" / "text_emb_010.npy")
    refused(folder, "are the same shard")
    shutil.rmtree(folder / "text_emb")
    shutil.rmtree(folder / "img_emb")
    refused(folder, "is no folder of clip-retrieval")
    refused(tmp_path / "nowhere", "is no folder of clip-retrieval")


def test_an_interrupted_import_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, other = clip_retrieval.read(folder, tmp_path / "whole"), tmp_path / "other"
    real = FeatureWriter.finish

    def stop(self: FeatureWriter) -> Path:
        if self.spec.kind == "text":
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            clip_retrieval.read(folder, other)
    assert open_cache(other).backbones("text") == []
    for _ in range(2):  # the second time everything is kept
        clip_retrieval.read(folder, other)
        for name in ("dataset.h5", "image/clip.h5", "text/clip.h5"):
            assert (other / name).read_bytes() == (whole / name).read_bytes()


def test_the_package_is_named(
    folder: Path, toy_cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackageError, match=r"pyarrow: pip install 'itmfeat\[tables\]'"):
        clip_retrieval.write(toy_cache, at / "out")
    fails(4, r"pip install 'itmfeat\[tables\]'", "cache", "import", "clip-retrieval", folder)
    assert not (at / "out.part").exists()
