"""Folders of SCAN and VSE-infinity: every number as in the source, damage in one sentence, there and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_features
from processes import call, fails

from itmfeat.cache import (
    FeatureSpec,
    FeatureWriter,
    Gather,
    open_cache,
    read_index,
    verify,
    write_index,
)
from itmfeat.cache.formats import bring, precomp, send
from itmfeat.errors import DataError, ItmfeatError, UsageError
from itmfeat.pairs import split_pairs

SIZES = {"train": 70, "dev": 8, "test": 6}  # two ranges of images, the second over all splits
SHAPE = (3, 8)  # regions, dim


def images(split: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    seed = ["train", "dev", "test", "testall"].index(split)
    return np.random.default_rng(seed).standard_normal((SIZES.get(split, 9), *shape)).astype(np.float32)


def plant(folder: Path, split: str, rows: np.ndarray, per_row: int, ids: list[str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}_ims.npy", rows)
    captions = [f"{split} caption {number}, “ä”\n" for number in range(len(rows) * per_row)]
    (folder / f"{split}_caps.txt").write_text("".join(captions), encoding="utf-8")
    if ids is not None:
        (folder / f"{split}_ids.txt").write_text("".join(f"{each}\n" for each in ids))


def names(split: str) -> list[str]:
    start = {"train": 0, "dev": 100, "test": 200, "testall": 200}[split]
    return [str(start + 3 * row) for row in range(SIZES.get(split, 9))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As SCAN has it: train a row an image, dev and test a row a caption."""
    made = tmp_path / "f30k_precomp"
    plant(made, "train", images("train"), 5, names("train"))
    for split in ("dev", "test"):
        ids = [each for each in names(split) for _ in range(5)]
        plant(made, split, np.repeat(images(split), 5, axis=0), 1, ids)
    return made


def vectors(cache: Path, dtype: Any = np.float32) -> np.ndarray:
    """All vectors of the only image backbone, (images, R, D)."""
    file = open_cache(cache).open("image")
    return file.array().reshape(len(file), -1, file.dim).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_number_is_that_of_the_source(folder: Path, tmp_path: Path, dtype: str) -> None:
    cache = precomp.read(folder, tmp_path / "f30k", name="f30k", dtype=dtype)
    expected = np.concatenate([images(split) for split in SIZES])
    np.testing.assert_array_equal(vectors(cache), expected.astype(dtype).astype(np.float32))
    index = read_index(cache / "dataset.h5")
    assert index.split_sizes() == {"train": (70, 350), "val": (8, 40), "test": (6, 30)}
    assert index.image_id.tolist() == names("train") + names("dev") + names("test")
    val = split_pairs(index, "val")
    assert [index.caption[int(row)] for row in val.captions[:6]] == [
        f"dev caption {number}, “ä”" for number in range(6)
    ]
    np.testing.assert_array_equal(val.caption_image, np.arange(40) // 5)
    assert verify(cache) == []
    file = open_cache(cache).open("image", "butd36")
    assert file.fingerprint["format"] == "precomp"
    assert file.fingerprint["weights"] == "unknown"
    sizes = {f"{split}_ims.npy": (folder / f"{split}_ims.npy").stat().st_size for split in SIZES}
    assert file.fingerprint["files"] == sizes
    assert index.name == "f30k"


def test_int8_is_near(folder: Path, tmp_path: Path) -> None:
    cache = precomp.read(folder, tmp_path / "small", dtype="int8")
    file = open_cache(cache).open("image")
    found = Gather(file)(torch.arange(70)).wide().numpy()
    np.testing.assert_allclose(found, images("train"), atol=0.02)


def test_testall_replaces_test(folder: Path, tmp_path: Path) -> None:
    plant(folder, "testall", np.repeat(images("testall"), 5, axis=0), 1, None)
    ids = [each for each in names("testall") for _ in range(5)]
    (folder / "testall_ids.txt").write_text("\n".join(ids))  # shared with test; no line feed at the end
    said: list[str] = []
    cache = precomp.read(folder, tmp_path / "coco", dtype="float32", note=said.append)
    assert read_index(cache / "dataset.h5").split_sizes()["test"] == (9, 45)
    np.testing.assert_array_equal(vectors(cache)[-9:], images("testall"))
    assert said[-1].endswith("testall_ims.npy: 9 images, 5 rows each, 45 captions, as test")


def test_rows_that_differ_are_an_image_each(folder: Path, tmp_path: Path) -> None:
    rows = np.repeat(images("dev"), 5, axis=0)
    rows[37, 2, 7] += 1e-3  # in the last group
    plant(folder, "dev", rows, 1, [f"d{row}" for row in range(40)])
    plant(folder, "test", images("test"), 1, None)  # six rows: no multiple of five
    cache = precomp.read(folder, tmp_path / "cc", dtype="float32")
    sizes = read_index(cache / "dataset.h5").split_sizes()
    assert sizes == {"train": (70, 350), "val": (40, 40), "test": (6, 6)}
    np.testing.assert_array_equal(vectors(cache)[70:110], rows)


def test_one_vector_an_image_and_seven_captions(tmp_path: Path) -> None:
    source = tmp_path / "vsepp"
    plant(source, "train", images("train", (8,)), 7, None)
    plant(source, "test", images("test", (8,)).astype(">f8"), 5, None)
    cache = precomp.read(source, tmp_path / "cache", dtype="float32", backbone="vgg19")
    index = read_index(cache / "dataset.h5")
    assert index.split_sizes() == {"train": (70, 490), "val": (0, 0), "test": (6, 30)}
    assert index.image_id[69] == "train-69"
    assert index.image_id[70] == "test-0"
    assert open_cache(cache).open("image", "vgg19").uniform == 1
    np.testing.assert_array_equal(vectors(cache)[70:, 0], images("test", (8,)))


def test_missing_ids_are_row_numbers_and_ids_may_stand_once_an_image(folder: Path, tmp_path: Path) -> None:
    (folder / "train_ids.txt").unlink()
    (folder / "dev_ids.txt").write_text("".join(f"{each}\r\n" for each in names("dev")))
    index = read_index(precomp.read(folder, tmp_path / "cache") / "dataset.h5")
    assert index.image_id[3] == "train-3"
    assert index.image_id.tolist()[70:78] == names("dev")


def test_file_names_come_from_the_mapping(folder: Path, tmp_path: Path) -> None:
    mapping = {"0": "a.jpg", "100": "train2014/b.jpg"}
    (folder / "id_mapping.json").write_text(json.dumps(mapping))
    index = read_index(precomp.read(folder, tmp_path / "one") / "dataset.h5")
    assert [index.image_file[row] for row in (0, 1, 70)] == ["a.jpg", "", "train2014/b.jpg"]
    inside = shutil.move(folder, tmp_path / "f30k" / "precomp")
    shutil.move(inside / "id_mapping.json", tmp_path / "f30k")
    assert read_index(precomp.read(inside, tmp_path / "two") / "dataset.h5").image_file[0] == "a.jpg"
    (tmp_path / "f30k" / "id_mapping.json").write_text("[1]")
    with pytest.raises(DataError, match="no JSON object of file names"):
        precomp.read(inside, tmp_path / "three")


def refused(folder: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as caught:
        precomp.read(folder, folder.parent / "refused")
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "refused").exists()


def test_what_does_not_fit_together_is_refused(folder: Path) -> None:
    captions = folder / "dev_caps.txt"
    whole = captions.read_text()
    captions.write_text(whole + "one more\n")
    refused(folder, "dev_ims.npy has 40 rows and dev_caps.txt 41 captions, .* no whole number")
    captions.write_text("")
    refused(folder, "40 rows and dev_caps.txt 0 captions")
    captions.write_bytes(b"\xff\n" * 40)
    refused(folder, r"dev_caps\.txt is not UTF-8")
    captions.unlink()
    refused(folder, r"dev_caps\.txt is missing")
    captions.write_text(whole)
    (folder / "dev_ids.txt").write_text("1\n2\n")
    refused(folder, "does not name the 8 images")
    (folder / "dev_ids.txt").write_text("".join(f"{number}\n" for number in range(40)))
    refused(folder, "does not name the 8 images")
    (folder / "dev_ids.txt").write_text("".join(f"{each}\n" for each in ["3", *names("dev")[1:]]))
    refused(folder, r"image 3 of .* in train_ids\.txt and again in dev_ids\.txt")
    (folder / "dev_ids.txt").unlink()
    plant(folder, "dev", images("dev", (4, 8)), 5, None)
    refused(folder, r"differ in shape \(train \(70, 3, 8\), dev \(8, 4, 8\)")
    (folder / "dev_ims.npy").unlink()
    refused(folder, r"dev_ims\.npy is missing")
    refused(folder.parent, "is no precomp folder")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_damaged_and_pickled_arrays_are_refused(folder: Path, at: Path) -> None:
    file = folder / "test_ims.npy"
    raw = file.read_bytes()
    for size in (0, 5, 60, len(raw) - 1):
        file.write_bytes(raw[:size])
        refused(folder, r"test_ims\.npy is cut short or no plain \.npy")
    np.save(file, np.array([Evil()] * 30, object), allow_pickle=True)
    refused(folder, r"no plain \.npy")
    file.write_bytes(b"\x80\x04N.")
    refused(folder, r"no plain \.npy")
    assert not (at / "evil").exists()
    for wrong in (np.zeros((30, 3, 8), int), np.zeros(30), np.zeros((0, 3, 8)), np.zeros((30, 3, 8), "c8")):
        np.save(file, wrong)
        refused(folder, "not floats")
    header = bytearray(raw)
    rng = np.random.default_rng(0)
    for _ in range(200):  # a header is text that is parsed: whatever it says is one sentence
        header[:] = raw
        for place in rng.integers(6, 100, 3):
            header[place] = rng.integers(256)
        file.write_bytes(header)
        try:
            precomp._rows(file)
        except DataError:
            continue


def test_headers_of_python_2(folder: Path, tmp_path: Path) -> None:
    file = folder / "train_ims.npy"
    file.write_bytes(file.read_bytes().replace(b"(70, 3, 8), } ", b"(70L, 3, 8), }"))
    np.testing.assert_array_equal(
        vectors(precomp.read(folder, tmp_path / "cache", dtype="float32"))[:70], images("train")
    )


def test_values_beyond_float16_are_named(folder: Path, tmp_path: Path) -> None:
    rows = images("train")
    rows[66, 0, 0] = 1e6
    plant(folder, "train", rows, 5, names("train"))
    with pytest.raises(ItmfeatError, match=r"items 64 to 83; .* --dtype float32"):
        precomp.read(folder, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    assert vectors(precomp.read(folder, tmp_path / "cache", dtype="float32"))[66, 0, 0] == 1e6


def test_an_interrupted_import_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = precomp.read(folder, tmp_path / "whole"), tmp_path / "other"
    real = FeatureWriter.write

    def stop(self: Any, index: int, **payloads: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt
        real(self, index, **payloads)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            precomp.read(folder, other)
    assert (other / "image" / "butd36.h5.part").exists()
    precomp.read(folder, other)
    for name in ("dataset.h5", "image/butd36.h5"):
        assert (other / name).read_bytes() == (whole / name).read_bytes()
    before = (other / "image" / "butd36.h5").stat().st_mtime_ns
    precomp.read(folder, other)  # what is finished stays
    assert (other / "image" / "butd36.h5").stat().st_mtime_ns == before
    precomp.read(folder, other, backbone="again", dtype="float32")
    assert open_cache(other).backbones("image") == ["again", "butd36"]
    with pytest.raises(DataError, match="another dtype"):
        precomp.read(folder, other, dtype="float32")
    (folder / "train_caps.txt").write_text("other\n" * 350)
    with pytest.raises(DataError, match="other images, captions or splits"):
        precomp.read(folder, other)


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize(("dtype", "shape"), [("float16", SHAPE), ("float32", SHAPE), ("float32", (8,))])
def test_there_and_back(tmp_path: Path, dtype: str, shape: tuple[int, ...], redundant: bool) -> None:
    source = tmp_path / "source"
    for split in SIZES:
        plant(source, split, images(split, shape), 5, names(split))
    (source / "id_mapping.json").write_text(json.dumps({each: f"{each}.jpg" for each in names("dev")}))
    cache = precomp.read(source, tmp_path / "cache", dtype=dtype)
    target = precomp.write(cache, tmp_path / "target", redundant=redundant)
    for split in SIZES:
        expected = images(split, shape).astype(dtype).astype(np.float32)
        copies = 5 if redundant and split != "train" else 1
        found = np.load(target / f"{split}_ims.npy")
        assert found.dtype == np.dtype("<f4")
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, np.repeat(expected, copies, axis=0))
        assert (target / f"{split}_caps.txt").read_bytes() == (source / f"{split}_caps.txt").read_bytes()
        ids = (target / f"{split}_ids.txt").read_text().split()
        assert ids == [each for each in names(split) for _ in range(copies)]
    back = precomp.read(target, tmp_path / "back", dtype=dtype)
    assert (back / "dataset.h5").read_bytes() == (cache / "dataset.h5").read_bytes()
    np.testing.assert_array_equal(vectors(back), vectors(cache))


def test_export_takes_five_captions_of_split_and_image(toy_cache: Path, tmp_path: Path) -> None:
    """An index with splits in any order, six captions for some images, and an older export cut off."""
    counts = np.array([6, 5, 7])
    digest = write_index(
        tmp_path / "mixed" / "dataset.h5",
        "mixed",
        {
            "image_id": ["a", "b", "c"],
            "image_file": ["", "", ""],
            "caption": [
                f"{image}{n}" for image, count in zip("abc", counts, strict=True) for n in range(count)
            ],
        },
        {
            "image_split": np.array([2, 0, 2], np.uint8),
            "caption_id": np.arange(18),
            "caption_image": np.repeat([0, 1, 2], counts),
        },
    )
    features = np.arange(3 * 2 * 4, dtype=np.float32).reshape(6, 4)
    write_features(
        tmp_path / "mixed" / "image" / "toy.h5",
        FeatureSpec("image", "toy", digest, np.full(3, 2), 4),
        features,
    )
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "dev_ims.npy").write_bytes(b"left over")
    target = precomp.write(tmp_path / "mixed", tmp_path / "out")
    assert sorted(file.name for file in target.iterdir()) == [
        f"{split}_{end}" for split in ("test", "train") for end in ("caps.txt", "ids.txt", "ims.npy")
    ]
    assert (target / "test_caps.txt").read_text().split() == [
        f"{image}{n}" for image in "ac" for n in range(5)
    ]
    np.testing.assert_array_equal(np.load(target / "test_ims.npy"), features.reshape(3, 2, 4)[[0, 2]])


def test_what_cannot_be_exported(toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    plant(source, "train", images("train"), 3, None)
    plant(source, "test", images("test"), 5, None)
    few = precomp.read(source, tmp_path / "few")
    with pytest.raises(DataError, match=r"70 of the 76 images .* fewer than five captions"):
        precomp.write(few, tmp_path / "out")
    with pytest.raises(DataError, match=r"source exists already; name a new folder"):
        precomp.write(toy_cache, source)
    ragged = tmp_path / "ragged"
    shutil.copytree(toy_cache, ragged)
    digest = read_index(ragged / "dataset.h5").digest
    lengths = np.full(60, 2)
    lengths[7] = 3
    spec = FeatureSpec("image", "ragged", digest, lengths, 4)
    write_features(ragged / "image" / "ragged.h5", spec, np.zeros((121, 4)))
    with pytest.raises(DataError, match="different numbers of regions"):
        precomp.write(ragged, tmp_path / "out", image_backbone="ragged")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ItmfeatError, match="GB are free"):
        precomp.write(toy_cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_and_options_have_names(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format to import 'precomb': did you mean 'precomp'"):
        bring("precomb", folder)
    with pytest.raises(UsageError, match="unknown parameter of precomp 'nmae': did you mean 'name'"):
        bring("precomp", folder, tmp_path / "cache", nmae="f30k")
    with pytest.raises(UsageError, match="unknown parameter of precomp 'redundnat'"):
        send("precomp", tmp_path, tmp_path / "out", redundnat=True)


def test_commands(folder: Path, at: Path) -> None:
    done = call("cache", "import", "precomp", folder, "--name", "f30k", "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["dataset"], found["path"]) == ("f30k", "caches/f30k")
    assert [(file["name"], file["dtype"]) for file in found["features"]] == [("butd36", "float32")]
    assert "train_ims.npy: 70 images, 1 row each, 350 captions, as train" in done.stderr
    assert "train 70 images" in call("cache", "import", "precomp", folder, "--cache", "here").stdout
    assert "precomp" in call("cache", "import", "precomp", folder).stdout
    assert (at / "caches" / "precomp" / "dataset.h5").exists()
    fails(2, "unknown format to import 'scan'", "cache", "import", "scan", folder)
    fails(2, "choose one cache with --cache", "cache", "export", "precomp", "out")
    exported = call("cache", "export", "precomp", "out", "--cache", "caches/f30k", "--redundant")
    assert exported.stdout == "out\n"
    assert np.load("out/test_ims.npy").shape == (30, 3, 8)
    fails(3, "exists already", "cache", "export", "precomp", "out", "--cache", "here")
    named = ("--cache", "here", "--image-backbone", "butd35")
    fails(2, "did you mean 'butd36'", "cache", "export", "precomp", "out2", *named)
    fails(3, "is no precomp folder", "cache", "import", "precomp", "nowhere")
    fails(2, "unknown dtype", "cache", "import", "precomp", folder, "--cache", "new", "--dtype", "int4")
