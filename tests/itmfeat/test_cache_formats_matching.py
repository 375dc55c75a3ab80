"""Regions of other projects: ids in any spelling, each image once, and what was begun goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import regions
from processes import call, fails
from regions import COCO, DIM, Picture, check, make_cache, npz, tsv, write_tsv

from itmfeat.cache import FeatureWriter, open_cache
from itmfeat.cache.formats import bring, matching
from itmfeat.errors import DataError, UsageError

cache = regions.cache  # a fixture
FLICKR = {name: f"{name}.jpg" for name in ("1000092795", "10002456", "1000268201_693b08cb0e")}


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
