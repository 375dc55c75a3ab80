"""Regions of other projects: every number as in the source, a sentence for bad files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import regions
from regions import COCO, DIM, Picture, check, make_cache, npz, tsv, write_tsv

from itmfeat.cache import open_cache, verify
from itmfeat.cache.formats import bring
from itmfeat.errors import DataError, ItmfeatError

cache = regions.cache  # a fixture


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("form", ["butd", "lxmert"])
def test_tsv_of_both_kinds(tmp_path: Path, cache: Path, form: str, dtype: str, end: str) -> None:
    source = tsv(tmp_path / "a.tsv", form, end=end)
    assert bring("tsv", source, cache, dtype=dtype) == cache
    file = open_cache(cache).open("image", "butd")
    check(file, 4, scored=form == "lxmert", exact=dtype != "int8")
    assert file.fingerprint == {
        "format": f"{form}-tsv",
        "files": [["a.tsv", source.stat().st_size]],
        "weights": "unknown",
        "boxes": True,
        "scores": form == "lxmert",
        "dim": DIM,
    }
    assert verify(cache) == []


def test_npz_folder_and_its_subfolders(tmp_path: Path, cache: Path) -> None:
    names = [Path(name).stem for name in COCO.values()]
    source = npz(tmp_path / "regions" / "val2014", names)
    (source.parent / "train2014").mkdir()
    for name in names[2:]:
        (source / f"{name}.npz").rename(source.parent / "train2014" / f"{name}.jpg.npz")
    bring("npz", source.parent, cache, backbone="milvlg", dtype="float32")
    file = open_cache(cache).open("image", "milvlg")
    check(file, 4, scored=False)
    assert (file.fingerprint["format"], file.fingerprint["files"]["count"]) == ("npz", 4)


@pytest.mark.parametrize("key", ["x", "features"])
def test_npz_without_boxes(tmp_path: Path, cache: Path, key: str) -> None:
    for row, name in enumerate(COCO):
        (tmp_path / "r").mkdir(exist_ok=True)
        np.savez(tmp_path / "r" / f"{name}.npz", **{key: Picture(row).features})
    bring("npz", tmp_path / "r", cache)
    check(open_cache(cache).open("image"), 4, scored=False, boxed=False)


def test_boxes_that_some_images_lack_are_mentioned(tmp_path: Path, cache: Path) -> None:
    source, said = npz(tmp_path / "r"), []
    np.savez(source / "9.npz", x=Picture(2).features)
    bring("npz", source, cache, note=said.append)
    check(open_cache(cache).open("image"), 4, scored=False, boxed=False)
    assert said == [f"{source}: 1 images have no boxes, so none are stored"]


def test_a_folder_of_parts(tmp_path: Path, cache: Path) -> None:
    """Some sets end in .tsv.0, .tsv.1; blank lines and other files mean nothing."""
    lines = [Picture(row).line(name, "lxmert") for row, name in enumerate(COCO)]
    folder = tmp_path / "parts"
    write_tsv(folder / "train.tsv.0", lines[2:3])
    write_tsv(folder / "train.tsv.1", ["", lines[3], ""])
    write_tsv(folder / "val.tsv", lines[:2], end="\n\n")
    (folder / "README.md").write_text("no features")
    bring("tsv", folder, cache)
    file = open_cache(cache).open("image")
    check(file, 4, scored=True)
    assert [name for name, _ in file.fingerprint["files"]] == ["train.tsv.0", "train.tsv.1", "val.tsv"]


def test_a_field_beyond_the_limit_of_csv(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", {"1": "1.jpg"})
    picture = Picture(0, dim=20_000)
    picture.features = np.tile(picture.features, (10, 1))  # 30 x 20,000: 3.2 MB of text
    picture.boxes = np.tile(picture.boxes, (10, 1))
    source = write_tsv(tmp_path / "a.tsv", [picture.line("1", "butd")])
    with pytest.raises(csv.Error, match="field larger"):
        list(csv.reader(source.read_text().splitlines(), delimiter="\t"))
    bring("tsv", source, cache, dtype="float32")
    file = open_cache(cache).open("image")
    np.testing.assert_array_equal(file.array(), picture.features)


def test_the_last_line_may_lack_its_end_but_nothing_else(tmp_path: Path, cache: Path) -> None:
    whole = tsv(tmp_path / "a.tsv").read_bytes()
    cut = tmp_path / "cut.tsv"
    cut.write_bytes(whole[:-1])
    bring("tsv", cut, cache)
    check(open_cache(cache).open("image"), 4, scored=False)
    last = len(whole) - whole[:-1].rfind(b"\n") - 1
    for missing in range(2, last):
        cut.write_bytes(whole[:-missing])
        with pytest.raises(DataError, match=r"cut.tsv(, line 4)?"):
            bring("tsv", cut, cache, backbone="cut")
    assert not list(cache.glob("image/cut*"))  # said before anything is made


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"num_boxes": 4}, "features are no 4 vectors of 6 float32"),
        ({"num_boxes": 0}, "num_boxes is '0' and must be a whole number above 0"),
        ({"num_boxes": "-3"}, "num_boxes is '-3'"),
        ({"num_boxes": "num_boxes"}, "num_boxes is 'num_boxes'"),
        ({"image_w": 0}, "image_w is '0'"),
        ({"image_h": "9" * 5000}, "image_h is '99999999999999999999'"),
        ({"features": Picture(0, dim=5).features}, "line 2: features are no 3 vectors of 6 float32"),
        ({"features": Picture(0).features.astype(np.float64)}, "features are no 3 vectors"),
        ({"features": "!" * 96}, "line 2: features is not base64"),
        ({"features": "AAAA" * 22 + "A=AAAAAA"}, "features is not base64"),
        ({"features": "A" * 95}, "features is cut in the middle"),
        ({"features": ""}, "features are no 3 vectors"),
        ({"boxes": Picture(0).boxes[:2]}, r"boxes has 32 bytes, not float32 of shape \(3, 4\)"),
        ({"boxes": "b'AAAA'"}, "boxes is not base64"),
        ({"objects_conf": Picture(0).boxes}, r"objects_conf has 48 bytes, not float32 of shape \(3,\)"),
        ({"boxes": "A\tB"}, "line 2 has 11 columns, not the 10 of lxmert-tsv"),
    ],
)
def test_bad_lines_are_one_sentence(
    tmp_path: Path, cache: Path, changes: dict[str, object], pattern: str
) -> None:
    lines = [Picture(row).line(name, "lxmert") for row, name in enumerate(COCO)]
    bad = Picture(0).line("391895", "lxmert", **changes)
    source = write_tsv(tmp_path / "a.tsv", [lines[1], bad, *lines[2:]])
    with pytest.raises(DataError, match=pattern) as caught:
        bring("tsv", source, cache)
    assert "\n" not in str(caught.value)
    assert not cache.joinpath("image", "butd.h5").exists()


def test_no_numbers_are_refused_and_far_boxes_are_cut_and_mentioned(tmp_path: Path, cache: Path) -> None:
    def source(name: str, **changes: np.ndarray) -> Path:
        bad = Picture(0).line("391895", "lxmert", **changes)
        lines = [Picture(row).line(name, "lxmert") for row, name in enumerate(COCO)]
        return write_tsv(tmp_path / f"{name}.tsv", [bad, *lines[1:]])

    for key, shape in (("features", (3, DIM)), ("boxes", (3, 4)), ("objects_conf", (3,))):
        for number in (np.nan, np.inf):
            with pytest.raises(ItmfeatError, match="items 0 to 3"):
                bring(
                    "tsv",
                    source(key, **{key: np.full(shape, number, np.float32)}),
                    cache,
                    backbone=f"{number}{key}",
                )
    with pytest.raises(ItmfeatError, match="float32"):
        bring("tsv", source("big", features=np.full((3, DIM), 1e5, np.float32)), cache, backbone="big")
    said: list[str] = []
    far = np.array([[-0.5, 0, 200.9, 100], [-30, 0, 100, 50], [0, 0, 100, 200]], np.float32)
    bring("tsv", source("far", boxes=far), cache, note=said.append)
    assert len(said) == 1
    assert "2 boxes reach more than a pixel beyond their image" in said[0]
    boxes = open_cache(cache).open("image").array("boxes")[:3]
    np.testing.assert_array_equal(boxes, np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 1]]))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"num_bbox": 2}, r"the shape \(3, 6\), not 2 vectors of 6"),
        ({"x": Picture(0).features.T}, r"the shape \(6, 3\), not 3 vectors of 3"),
        ({"x": Picture(0).features[0], "num_bbox": None}, r"the shape \(6,\)"),
        ({"x": np.zeros((0, DIM), np.float32), "num_bbox": None}, r"the shape \(0, 6\)"),
        ({"x": np.zeros((3, 0), np.float32)}, r"the shape \(3, 0\), not 3 vectors;"),
        ({"x": np.float32(1)}, r"the shape \(\), not 3 vectors;"),
        ({"x": np.array([{}] * 3, object)}, "x is no array of numbers"),
        ({"x": None}, "neither x nor features but bbox, image_h"),
        ({"num_bbox": np.arange(3)}, "damaged or no .npz file of regions"),
        ({"bbox": np.zeros((2, 4), np.float32)}, r"bbox has the shape \(2, 4\) for 3 regions"),
        ({"image_w": 0}, "image of 0 x 100"),
        ({"image_h": np.array({}, object)}, "damaged or no .npz file of regions"),
    ],
)
def test_bad_npz_files_are_one_sentence(tmp_path: Path, changes: dict[str, object], pattern: str) -> None:
    cache = make_cache(tmp_path / "cache", {"391895": ""})
    with pytest.raises(DataError, match=pattern) as caught:
        bring("npz", npz(tmp_path / "r", ["391895"], **changes), cache)
    assert "\n" not in str(caught.value)


def test_damaged_npz_files(tmp_path: Path, cache: Path) -> None:
    source = npz(tmp_path / "r")
    whole = (source / "9.npz").read_bytes()
    assert whole[60:80] != bytes(20)
    for raw in (
        b"",
        b"no zip at all",
        whole[:-30],
        whole[: len(whole) // 2],
        whole[:60] + bytes(20) + whole[80:],
        whole.replace(b"PK\1\2", b"PK\1\1"),
    ):
        (source / "9.npz").write_bytes(raw)
        with pytest.raises(DataError, match=r"9\.npz is damaged or no \.npz file"):
            bring("npz", source, cache)


def test_other_floats_of_npz(tmp_path: Path, cache: Path) -> None:
    source = npz(tmp_path / "r")
    np.savez(source / "9.npz", x=Picture(2).features.astype(">f4"))
    np.savez(source / "25.npz", x=np.asfortranarray(Picture(3).features.astype(np.float64)))
    bring("npz", source, cache, dtype="float32")
    check(open_cache(cache).open("image"), 4, scored=False, boxed=False)


@pytest.mark.parametrize("content", ["image_id\timage_w\n", "\x00" * 1000, "a,b,c\n", "\t" * 8 + "x"])
def test_no_tsv_of_regions(tmp_path: Path, cache: Path, content: str) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(DataError, match=r"line 1 has \d+ columns, not 6 \(butd-tsv\) or 10 \(lxmert-tsv\)"):
        bring("tsv", tmp_path / "a.tsv", cache)


def test_kinds_do_not_mix_and_an_empty_file_lacks_all(tmp_path: Path, cache: Path) -> None:
    tsv(tmp_path / "r" / "a.tsv")
    tsv(tmp_path / "r" / "b.tsv", "lxmert")
    with pytest.raises(DataError, match=r"b.tsv, line 1 has 10 columns, not the 6 of butd-tsv"):
        bring("tsv", tmp_path / "r", cache)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(DataError, match="lacks 4 of the 4 images"):
        bring("tsv", tmp_path / "empty.tsv", cache)
