"""Caches from caches: every value by id as in the source, of any type, and one sentence for wrong input."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from processes import call, fails

from itmfeat.cache import FeatureFile, FeatureSpec, FeatureWriter, open_cache, ranges, verify, write_index
from itmfeat.cache.subset import merge, subset
from itmfeat.errors import DataError, ItmfeatError, UsageError

IMAGES = 40
SPLITS = np.array([0, 1, 0, 2, 0, 0, 1, 0, 2, 0] * 4, np.uint8)  # 24, 8, 8
CAPTIONS = np.random.default_rng(0).integers(1, 8, IMAGES)


def make(folder: Path, images: range = range(IMAGES), name: str = "toy", **changes: object) -> Path:
    """A cache of these images in which every number follows from the image: all types, ragged, with boxes."""
    given = {"running": False, "truncated": 3, "dtype": "int8", "weights": "abc", "text": "words"} | changes
    counts = CAPTIONS[list(images)]
    first = np.cumsum(CAPTIONS)[images.start] - CAPTIONS[images.start]
    captions = range(0 if given["running"] else first, (0 if given["running"] else first) + counts.sum())
    digest = write_index(
        folder / "dataset.h5",
        name,
        {
            "image_id": [f"id{i}" for i in images],
            "image_file": [f"é/{i}.jpg" for i in images],
            "caption": [f"caption {c} of {i}" for i in images for c in range(CAPTIONS[i])],
        },
        {
            "image_split": SPLITS[list(images)],
            "caption_id": np.array(captions, np.int64),
            "caption_image": np.repeat(np.arange(len(images)), counts),
        },
    )
    image = FeatureSpec(
        "image", "regions", digest, np.array([i % 5 + (i % 7 > 0) for i in images]), 7, boxed=True,
        dtype=str(given["dtype"]), range_items=8, fingerprint=json.dumps({"weights": given["weights"]}),
    )  # fmt: skip
    fill(folder / "image" / "regions.h5", image, [(i,) for i in images])
    text = FeatureSpec(
        "text", "words", digest, np.array([(i + c) % 4 + 1 for i in images for c in range(CAPTIONS[i])]), 5,
        pooled_dim=3, range_items=16, versions='{"torch": "%s"}' % (2 + images.start),
        fingerprint=json.dumps({"weights": "w", "truncated": given["truncated"]}),
    )  # fmt: skip
    keys = [(i, c) for i in images for c in range(CAPTIONS[i])]
    fill(folder / "text" / f"{given['text']}.h5", text, keys)
    return folder


def fill(path: Path, spec: FeatureSpec, keys: list[tuple[int, ...]]) -> None:
    with FeatureWriter(path, spec) as writer:
        for part in writer.pending:
            found = [values(keys[item], int(spec.lengths[item]), spec) for item in writer.items(part)]
            writer.write(part, **{name: np.concatenate([one[name] for one in found]) for name in found[0]})
        writer.finish()


def values(key: tuple[int, ...], length: int, spec: FeatureSpec) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(key)
    made = {"features": rng.standard_normal((length, spec.dim)).astype(np.float32)}
    if spec.pooled_dim:
        made["pooled"] = rng.standard_normal((1, spec.pooled_dim))
    if spec.boxed:
        made |= {"boxes": rng.random((length, 4)), "scores": rng.random(length)}
    return made


def contents(cache: Path) -> dict[str, object]:
    """All that a cache says of each image, by its id, as raw bytes."""
    found = open_cache(cache)
    index = found.index
    files = [found.open(kind, name) for kind in ("image", "text") for name in found.backbones(kind)]
    whole = {}
    for row in range(index.images):
        captions = np.flatnonzero(index.caption_image == row)
        whole[index.image_id[row]] = (
            index.image_file[row],
            int(index.image_split[row]),
            [(index.caption[int(c)], int(index.caption_id[c])) for c in captions],
            [raw(file, [row] if file.attributes["kind"] == "image" else captions) for file in files],
        )
    return whole


def raw(file: FeatureFile, items: "list[int] | np.ndarray") -> list[dict[str, bytes]]:
    spans = [(item, slice(file.offsets[item], file.offsets[item + 1])) for item in items]
    return [
        {n: file.array(n)[item if n == "pooled" else span].tobytes() for n in file.extents}
        for item, span in spans
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("caches") / "whole")


@pytest.mark.parametrize(
    ("dtype", "split", "images", "sizes"),
    [
        ("float16", "val", None, (0, 8, 0)),
        ("float32", None, 10, (6, 2, 2)),
        ("int8", "train", 5, (5, 0, 0)),
        ("int8", None, 3, (1, 1, 1)),
        ("int8", None, 2, (1, 1, 0)),
        ("int8", None, 39, (23, 8, 8)),
        ("int8", None, 40, (24, 8, 8)),
    ],
)
def test_a_subset_has_the_same_values(
    tmp_path: Path, whole: Path, dtype: str, split: str | None, images: int | None, sizes: tuple[int, ...]
) -> None:
    cache = whole if dtype == "int8" else make(tmp_path / "cache", dtype=dtype)
    target = subset(cache, tmp_path / "part", split=split, images=images)
    before, after = contents(cache), contents(target)
    assert after == {key: before[key] for key in before if key in after}
    assert list(after) == [key for key in before if key in after]  # in the same order
    index = open_cache(target).index
    assert [found for found, _ in index.split_sizes().values()] == list(sizes)
    assert index.name == "toy"
    assert (index.digest == open_cache(cache).index.digest) == (images == IMAGES)
    assert verify(target) == []
    for kind in ("image", "text"):
        old, new = open_cache(cache).open(kind), open_cache(target).open(kind)
        for key in ("backbone", "dtype", "tokens", "range_items", "versions"):
            assert old.attributes[key] == new.attributes[key]
    assert open_cache(target).open("text").fingerprint == {"weights": "w"}  # a count of captions is not known


def test_one_seed_one_choice_and_more_images_contain_fewer(tmp_path: Path, whole: Path) -> None:
    def ids(name: str, **options: int | str) -> set[str]:
        target = tmp_path / name
        return set(open_cache(subset(whole, target, **options)).index.image_id.tolist())  # type: ignore[arg-type]

    few, same, more = ids("a", images=10), ids("b", images=10), ids("c", images=20)
    assert few == same < more
    assert ids("d", images=10, seed=1) != few
    assert ids("e", images=6, split="train") < few
    assert (tmp_path / "a/dataset.h5").read_bytes() == (tmp_path / "b/dataset.h5").read_bytes()
    assert (tmp_path / "a/image/regions.h5").read_bytes() == (tmp_path / "b/image/regions.h5").read_bytes()


def test_the_parts_of_a_whole_merge_to_the_whole(tmp_path: Path, whole: Path) -> None:
    parts = [subset(whole, tmp_path / split, split=split) for split in ("test", "train", "val")]
    said: list[str] = []
    target = merge(parts, tmp_path / "joined", note=said.append)
    assert contents(target) == contents(whole)
    assert verify(target) == []
    assert open_cache(target).index.split_sizes() == open_cache(whole).index.split_sizes()
    assert not said


def test_ranges_that_cross_the_border_of_caches(tmp_path: Path, whole: Path) -> None:
    """Ranges of 8 images; the caches have 3, 1, 13 and 23."""
    borders = [0, 3, 4, 17, 40]
    parts = [make(tmp_path / str(start), range(start, stop)) for start, stop in pairwise(borders)]
    target = merge(parts, tmp_path / "joined")
    assert contents(target) == contents(whole)
    for name in ("dataset.h5", "image/regions.h5"):
        assert (target / name).read_bytes() == (whole / name).read_bytes()
    text = open_cache(target).open("text")
    assert text.fingerprint == {"weights": "w", "truncated": 12}
    assert json.loads(str(text.attributes["versions"])) == {"torch": "19, 2, 5, 6"}


def test_running_caption_ids_are_numbered_anew(tmp_path: Path, whole: Path) -> None:
    parts = [
        make(tmp_path / str(rows.start), rows, running=True) for rows in (range(0, 20), range(20, IMAGES))
    ]
    said: list[str] = []
    index = open_cache(merge(parts, tmp_path / "joined", note=said.append)).index
    assert index.caption_id.tolist() == list(range(CAPTIONS.sum()))
    assert index.caption.tolist() == open_cache(whole).index.caption.tolist()
    assert len(said) == 1
    assert "numbered anew" in said[0]


def test_training_on_a_subset(toy_cache: Path, at: Path) -> None:
    assert call("cache", "subset", "small", "--cache", toy_cache, "--images", 40).exit_code == 0
    small = ["--epochs", "2", "--batch-size", "32", "--set", "head.dim=32"]
    done = call("train", "--loss", "triplet", "--noise", "0.2", "--cache", "small", *small, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    sizes = open_cache(at / "small").index.split_sizes()
    assert (found["images"], found["captions"]) == sizes["test"] == (6, 30)
    for split in ("train", "val", "test"):
        assert call("cache", "subset", split, "--cache", "small", "--split", split).exit_code == 0
    assert call("cache", "merge", "again", "train", "val", "test").exit_code == 0
    again = ["train", "--loss", "triplet", "--noise", "0.2", "--cache", "again", *small]
    fails(3, "exists and is finished", *again)  # the parts are the very same data
    assert json.loads(call(*again, "--runs", "other", "--json").stdout)["rsum"] == found["rsum"]


def test_an_interrupted_subset_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, other = tmp_path / "a", subset(whole, tmp_path / "b", images=30)
    plain, calls = ranges.write_at, []

    def stop(descriptor: int, data: memoryview, position: int, path: Path) -> None:
        calls.append(position)
        if len(calls) == 6:
            raise KeyboardInterrupt
        plain(descriptor, data, position, path)

    monkeypatch.setattr(ranges, "write_at", stop)
    for _ in range(3):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            subset(whole, target, images=30)
    monkeypatch.undo()
    subset(whole, target, images=30)
    before = [path.stat().st_mtime_ns for path in sorted(target.rglob("*.h5"))]
    subset(whole, target, images=30)
    assert before == [path.stat().st_mtime_ns for path in sorted(target.rglob("*.h5"))]
    files = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
    assert [str(name) for name in files] == ["dataset.h5", "image/regions.h5", "text/words.h5"]
    for name in files:
        assert (target / name).read_bytes() == (other / name).read_bytes()


def test_a_damaged_source_gets_no_new_checksums(tmp_path: Path) -> None:
    good, bad = make(tmp_path / "a", range(20)), make(tmp_path / "b", range(20, IMAGES))
    path = bad / "image" / "regions.h5"
    content = bytearray(path.read_bytes())
    content[FeatureFile(path).extents["boxes"].offset + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"regions\.h5: items 0 to 7 are damaged"):
        subset(bad, tmp_path / "part", split="val")
    with pytest.raises(DataError, match=r"regions\.h5: items 0 to 7 are damaged"):
        merge([good, bad], tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_unfinished_files_are_left_out_and_mentioned(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    (cache / "text" / "more.h5.part").touch()
    said: list[str] = []
    subset(cache, tmp_path / "part", split="val", note=said.append)
    assert said == [f"left out, as they are not finished: {cache / 'text' / 'more.h5.part'}"]


@pytest.mark.parametrize(
    ("options", "error", "pattern"),
    [
        ({}, UsageError, "say which images"),
        ({"split": "dev"}, UsageError, "unknown split 'dev'"),
        ({"images": 0}, UsageError, "--images must be 1 to 40"),
        ({"images": 41}, UsageError, "--images must be 1 to 40, the images of .*, not 41"),
        ({"split": "val", "images": 9}, UsageError, "must be 1 to 8, the images of the val split"),
        ({"images": 3, "seed": -1}, UsageError, "--seed must lie between"),
    ],
)
def test_wrong_subsets(
    tmp_path: Path, whole: Path, options: dict[str, object], error: type[ItmfeatError], pattern: str
) -> None:
    with pytest.raises(error, match=pattern):
        subset(whole, tmp_path / "part", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "part").exists()


def test_wrong_places(tmp_path: Path, whole: Path) -> None:
    part = subset(whole, tmp_path / "part", split="val")
    with pytest.raises(DataError, match="already holds another dataset"):
        subset(whole, part, split="train")
    with pytest.raises(UsageError, match="is a cache to read from"):
        subset(whole, whole.parent / "x" / ".." / "whole", images=40)
    with pytest.raises(DataError, match=r"the train split of .* has no images"):
        subset(part, tmp_path / "none", split="train")
    with pytest.raises(DataError, match="is no cache"):
        subset(tmp_path / "nothing", tmp_path / "none", split="train")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("second", "pattern"),
    [
        (lambda folder: make(folder, range(19, 30)), "both hold image id19, and 0 more"),
        (lambda folder: make(folder, range(20, 30), name="other"), r"different datasets \(other, toy\)"),
        (lambda folder: make(folder, range(20, 30), dtype="float32"), "differ in dtype"),
        (lambda folder: make(folder, range(20, 30), weights="xyz"), "differ in fingerprint"),
        (lambda folder: make(folder, range(20, 30), text="other"), "has no text features other"),
    ],
)
def test_caches_that_do_not_fit(tmp_path: Path, second: Callable[[Path], Path], pattern: str) -> None:
    first = make(tmp_path / "a", range(0, 20))
    with pytest.raises(DataError, match=pattern):
        merge([first, second(tmp_path / "b")], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(UsageError, match="is a cache to read from"):
        merge([first, tmp_path / "b"], first)


def test_the_commands(whole: Path, at: Path) -> None:
    made = call("cache", "subset", "part", "--cache", whole, "--split", "val", "--images", 4, "--seed", 3)
    assert made.exit_code == 0, made.output
    assert made.stdout == call("cache", "info", "part").stdout
    assert "val   4 images" in made.stdout
    subset(whole, at / "rest", split="train")
    joined = json.loads(call("cache", "merge", "joined", "part", "rest", "--json").stdout)
    assert joined["splits"]["train"][0] == 24
    assert joined == json.loads(call("cache", "info", "joined", "--json").stdout)
    fails(2, "say which images", "cache", "subset", "x", "--cache", whole)
    fails(2, "name two caches or more", "cache", "merge", "x", "part")
    fails(3, "is no cache", "cache", "merge", "x", "part", "y")
