"""Regions of other projects: every number as in the source, ids in any spelling, a sentence for bad files."""

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import call, fails

from itmfeat.cache import FeatureFile, FeatureWriter, open_cache, verify, write_index
from itmfeat.cache.formats import bring, matching
from itmfeat.errors import DataError, ItmfeatError, UsageError

DIM = 6
COCO = {
    "391895": "val2014/COCO_val2014_000000391895.jpg",
    "522418": "val2014/COCO_val2014_000000522418.jpg",
    "9": "train2014/COCO_train2014_000000000009.jpg",
    "25": "train2014/COCO_train2014_000000000025.jpg",
}
FLICKR = {name: f"{name}.jpg" for name in ("1000092795", "10002456", "1000268201_693b08cb0e")}
COUNTS = [3, 1, 5, 2]


def make_cache(folder: Path, images: dict[str, str]) -> Path:
    count = len(images)
    write_index(
        folder / "dataset.h5",
        "toy",
        {"image_id": list(images), "image_file": list(images.values()), "caption": ["a"] * count},
        {
            "image_split": np.zeros(count, np.uint8),
            "caption_id": np.arange(count),
            "caption_image": np.arange(count),
        },
    )
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", COCO)


class Picture:
    """Regions with numbers that follow from the image's row: width 200, height 100, boxes inside."""

    size = (200, 100)

    def __init__(self, row: int, dim: int = DIM) -> None:
        rng = np.random.default_rng(row)
        count = COUNTS[row % len(COUNTS)]
        self.features = rng.standard_normal((count, dim)).astype(np.float32)
        self.fractions = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        self.boxes = self.fractions * np.array([*self.size, *self.size], np.float32)
        self.scores = rng.random(count).astype(np.float32)

    def line(self, name: str, form: str, **changes: object) -> str:
        width, height = self.size
        classes = np.arange(len(self.boxes))
        cells = {
            "image_id": name,
            "image_w": width,
            "image_h": height,
            "objects_id": classes,
            "objects_conf": self.scores,
            "attrs_id": classes,
            "attrs_conf": self.scores,
            "num_boxes": len(self.boxes),
            "boxes": self.boxes,
            "features": self.features,
        } | changes
        butd = "image_id image_w image_h num_boxes boxes features"
        lxmert = (
            "image_id image_h image_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features"
        )
        columns = (butd if form == "butd" else lxmert).split()
        return "\t".join(_cell(cells[column]) for column in columns)

    def arrays(self) -> dict[str, object]:
        width, height = self.size
        return {
            "x": self.features,
            "bbox": self.boxes,
            "num_bbox": len(self.boxes),
            "image_h": height,
            "image_w": width,
            "info": np.array({"objects_id": [1]}, dtype=object),  # pickled: must never be opened
        }


def _cell(value: object) -> str:
    return base64.b64encode(value.tobytes()).decode() if isinstance(value, np.ndarray) else str(value)


def write_tsv(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def tsv(path: Path, form: str = "butd", names: list[str] | None = None, end: str = "\n") -> Path:
    names = names or list(COCO)
    return write_tsv(path, [Picture(row).line(name, form) for row, name in enumerate(names)], end)


def npz(folder: Path, names: list[str] | None = None, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(names or list(COCO)):
        arrays = Picture(row).arrays() | changes
        np.savez_compressed(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def check(file: FeatureFile, rows: int, scored: bool, boxed: bool = True, exact: bool = True) -> None:
    """Every number of every image equals the source's, rounded to the type of the file."""
    assert len(file) == rows
    assert ("boxes" in file.extents) == ("scores" in file.extents) == boxed
    features = file.array()
    if "scales" in file.extents:
        features = features.astype(np.float32) * file.array("scales")[:, None]
    for row in range(rows):
        picture, mine = Picture(row), slice(file.offsets[row], file.offsets[row + 1])
        found = features[mine]
        if exact:
            np.testing.assert_array_equal(found, picture.features.astype(found.dtype))
        np.testing.assert_allclose(found, picture.features, atol=0.03)
        if boxed:
            np.testing.assert_allclose(file.array("boxes")[mine], picture.fractions, rtol=1e-6)
            scores = picture.scores if scored else np.zeros_like(picture.scores)
            np.testing.assert_array_equal(file.array("scores")[mine], scores)
    assert file.verify() == []


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


@pytest.mark.parametrize(
    "spell",
    [
        lambda name, file: name,
        lambda name, file: Path(file).stem,
        lambda name, file: Path(file).name,
        lambda name, file: file,
        lambda name, file: f"{int(name):012d}",
        lambda name, file: f"{int(name):012d}.jpg",
        lambda name, file: f"COCO_test2015_{int(name):012d}",
    ],
)
def test_coco_ids_in_every_spelling(tmp_path: Path, cache: Path, spell: Callable[[str, str], str]) -> None:
    names = [spell(name, file) for name, file in COCO.items()]
    bring("tsv", tsv(tmp_path / "a.tsv", names=names), cache)
    check(open_cache(cache).open("image"), 4, scored=False)


@pytest.mark.parametrize("ending", ["", ".jpg", ".JPG"])
def test_flickr_names(tmp_path: Path, ending: str) -> None:
    cache = make_cache(tmp_path / "cache", FLICKR)
    bring("tsv", tsv(tmp_path / "a.tsv", names=[name + ending for name in FLICKR]), cache)
    check(open_cache(cache).open("image"), 3, scored=False)


def test_file_names_where_ids_are_running_numbers(tmp_path: Path) -> None:
    """As in the folders of SCAN; an index may also know no file names."""
    cache = make_cache(tmp_path / "cache", {"0": "1000092795.jpg", "1": "10002456.jpg"})
    bring("tsv", tsv(tmp_path / "a.tsv", names=["1000092795", "10002456"]), cache)
    check(open_cache(cache).open("image"), 2, scored=False)
    bare = make_cache(tmp_path / "bare", {"0": "", "1": ""})
    bring("tsv", tsv(tmp_path / "b.tsv", names=["0", "1"]), bare)
    check(open_cache(bare).open("image"), 2, scored=False)


@pytest.mark.parametrize("images", [{"0": "1.jpg", "1": "0.jpg"}, {"7": "a.jpg", "b": "c/007.jpg"}])
def test_an_ambiguous_name_is_an_error(tmp_path: Path, images: dict[str, str]) -> None:
    cache = make_cache(tmp_path / "cache", images)
    source = tsv(tmp_path / "a.tsv", names=[*list(images)[:1], "1"])
    with pytest.raises(DataError, match=r"a.tsv, line 1: '[07]' stands for more than one image of toy"):
        bring("tsv", source, cache)


def test_missing_images_are_counted_and_named(tmp_path: Path, cache: Path) -> None:
    named = "391895, 9, 25;"
    with pytest.raises(DataError, match=f"lacks 3 of the 4 images of toy, as {named}"):
        bring("tsv", tsv(tmp_path / "a.tsv", names=["522418"]), cache)
    with pytest.raises(DataError, match=f"lacks 3 of the 4 images of toy, as {named}"):
        bring("npz", npz(tmp_path / "r", ["522418"]), cache)
    assert not (cache / "image").exists()


def test_entries_of_other_images_are_mentioned(tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    source = tsv(tmp_path / "a.tsv", names=[*COCO, "1000", "n2000"])
    bring("tsv", source, cache, note=said.append)
    bring("npz", npz(tmp_path / "r", [*COCO, "1000"]), cache, backbone="other", note=said.append)
    assert said == [
        f"{source}: left out 2 entries, their images are not in toy",
        f"{tmp_path / 'r'}: left out 1 entries, their images are not in toy",
    ]
    check(open_cache(cache).open("image", "butd"), 4, scored=False)


def test_a_repeated_line_counts_once_and_a_different_one_is_an_error(tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    lines = [Picture(row).line(name, "butd") for row, name in enumerate(COCO)]
    again = Picture(0).line("COCO_val2014_000000391895", "butd")
    source = write_tsv(tmp_path / "a.tsv", [*lines, again, lines[2]])
    bring("tsv", source, cache, note=said.append)
    assert said == [f"{source}: 2 lines stand twice and were taken once"]
    check(open_cache(cache).open("image"), 4, scored=False)
    other = write_tsv(tmp_path / "b.tsv", [*lines, Picture(1).line("391895", "butd")])
    with pytest.raises(DataError, match=r"b.tsv, line 5 is of the same image as .*b.tsv, line 1 and differs"):
        bring("tsv", other, cache, backbone="b")


def test_two_files_of_one_image_are_an_error(tmp_path: Path, cache: Path) -> None:
    source = npz(tmp_path / "r", [*COCO, "COCO_val2014_000000391895"])
    with pytest.raises(DataError, match=r"391895.npz and .*391895.npz are of the same image"):
        bring("npz", source, cache)


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


@pytest.mark.parametrize("form", ["tsv", "npz"])
def test_an_interrupted_import_goes_on_to_the_same_bytes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(matching, "RANGE_ITEMS", 1)
    source = tsv(tmp_path / "a.tsv", "lxmert") if form == "tsv" else npz(tmp_path / "r")
    other = make_cache(tmp_path / "other", COCO)
    bring(form, source, other)
    written: list[int] = []
    plain = FeatureWriter.write

    def write(self: FeatureWriter, index: int, **payloads: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(index)
        plain(self, index, **payloads)

    with monkeypatch.context() as during:
        during.setattr(FeatureWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            bring(form, source, cache)
    assert (cache / "image" / "butd.h5.part").exists()
    with pytest.raises(DataError, match="other settings"):
        bring(form, source, cache, dtype="int8")
    again: list[int] = []
    monkeypatch.setattr(
        FeatureWriter, "write", lambda self, index, **k: (again.append(index), plain(self, index, **k))
    )
    bring(form, source, cache)
    assert (written, again) == ([0, 1, 2], [3])
    name = "image/butd.h5"
    assert (cache / name).read_bytes() == (other / name).read_bytes()
    assert [path.name for path in (cache / "image").iterdir()] == ["butd.h5"]


def test_a_finished_import_stays_and_another_is_refused(tmp_path: Path, cache: Path) -> None:
    source = tsv(tmp_path / "a.tsv")
    bring("tsv", source, cache)
    path = cache / "image" / "butd.h5"
    before = path.stat().st_mtime_ns
    bring("tsv", source, cache)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"another dtype \(float16, not float32\); choose another folder"):
        bring("tsv", source, cache, dtype="float32")
    with pytest.raises(DataError, match="another fingerprint"):
        bring("tsv", tsv(tmp_path / "b.tsv"), cache)


@pytest.mark.parametrize("form", ["tsv", "npz"])
def test_wrong_requests(tmp_path: Path, cache: Path, form: str) -> None:
    source = tsv(tmp_path / "a.tsv") if form == "tsv" else npz(tmp_path / "r")
    with pytest.raises(DataError, match=r"no dataset.h5 .*extract DATASET --image-backbone none"):
        bring(form, source, tmp_path / "nothing")
    with pytest.raises(UsageError, match="unknown dtype 'bfloat16'"):
        bring(form, source, cache, dtype="bfloat16")
    for name in ("../butd", "", "a b", "hf:me"):
        with pytest.raises(UsageError, match="must be a plain name"):
            bring(form, source, cache, backbone=name)
    with pytest.raises(DataError, match=f"no .{form} file|there is no"):
        bring(form, tmp_path / "missing", cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"holds no .{form} file"):
        bring(form, tmp_path / "empty", cache)


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


def test_the_command(tmp_path: Path, cache: Path) -> None:
    source = tsv(tmp_path / "a.tsv", "lxmert", names=[*COCO, "77"])
    done = call("cache", "import", "tsv", source, "--cache", cache, "--backbone", "lxmert36", "--json")
    assert done.exit_code == 0, done.output
    (file,) = json.loads(done.stdout)["features"]
    assert (file["name"], file["items"], file["vectors"], file["dim"]) == ("lxmert36", 4, 11, DIM)
    assert "left out 1 entries" in done.stderr
    fails(3, "lacks 4 of the 4", "cache", "import", "npz", npz(tmp_path / "r", ["1"]), "--cache", cache)
    fails(
        2,
        "unknown parameter of npz",
        "cache",
        "import",
        "npz",
        tmp_path / "r",
        "--cache",
        cache,
        "--name",
        "x",
    )
