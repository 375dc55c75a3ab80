"""What all readers share: `read`, the `Corpus`, splits, `--limit` and finding the images."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus import READERS, SPLITS, Corpus, SplitFractions, read
from itmfeat_extract.corpus.annotations import one_line
from itmfeat_extract.corpus.rows import Row, assemble
from itmfeat_extract.corpus.splits import draw, keep_first


def corpus(splits: list[str]) -> Corpus:
    """One, two, three, one, two, ... captions an image."""
    captions = [1 + number % 3 for number in range(len(splits))]
    return Corpus(
        name="toy",
        root=Path("toy"),
        image_ids=[f"i{number}" for number in range(len(splits))],
        image_files=[f"i{number}.jpg" for number in range(len(splits))],
        image_splits=splits,
        captions=[f"caption {number}" for number in range(sum(captions))],
        caption_ids=list(range(100, 100 + sum(captions))),
        caption_image=np.repeat(np.arange(len(splits)), captions),
    )


def row(number: int, **other: object) -> Row:
    plain = Row(str(number), (f"{number}.jpg",), "train", ["a dog"], [number])
    return replace(plain, **other)  # type: ignore[arg-type]


# ---- read


def test_the_readers_are_a_plain_sorted_dict() -> None:
    assert list(READERS) == sorted(READERS)
    assert {"coco", "flickr8k", "folder", "webdataset"} < set(READERS)


def test_an_unknown_dataset_is_told_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'flikr8k': did you mean 'flickr8k'\? known are albef"):
        read("flikr8k", tmp_path)


@pytest.mark.parametrize("name", ["coco", "flickr30k", "flickr8k"])
def test_a_missing_root_says_what_to_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is no folder .*: give --root DIR; data/"):
        read(name, tmp_path / "absent")


@pytest.mark.parametrize("name", ["coco", "flickr30k", "flickr8k"])
def test_an_empty_root_says_what_to_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--root DIR; data/README\.md shows the layout$"):
        read(name, tmp_path)


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path, fractions: SplitFractions | None) -> Corpus:
        raise PermissionError(13, "Permission denied", "secret.json")

    monkeypatch.setitem(READERS, "coco", refuse)
    with pytest.raises(DataError, match=r"^coco: cannot read secret\.json: Permission denied$"):
        read("coco", tmp_path)


def test_read_limits(shared: Path) -> None:
    whole = read("flickr8k", shared / "flickr8k")
    some = read("flickr8k", shared / "flickr8k", limit=70)
    assert Counter(some.image_splits) == {"train": 50, "val": 10, "test": 10}
    assert len(some.captions) == 350
    assert some.image_ids[0] == whole.image_ids[0]
    assert some.origin.endswith("limited to 70 of 6997 images")


# ---- Corpus


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"image_ids": ["i0", "i0", "i2"]}, DataError, "an image stands twice"),
        ({"caption_ids": [1, 1, 2, 3, 4, 5]}, DataError, "two captions .* the same id"),
        ({"image_splits": ["train", "dev", "test"]}, ValueError, "none of train, val, test"),
        ({"image_files": ["i0.jpg"]}, ValueError, "differ in length"),
        ({"caption_image": np.array([0, 2, 1, 1, 2, 2])}, ValueError, "in image order"),
        ({"caption_image": np.array([0, 1, 1, 2, 2, 3])}, ValueError, "belongs to no image"),
    ],
)
def test_a_corpus_holds_together(wrong: dict[str, object], error: type[Exception], said: str) -> None:
    good = corpus(["train", "val", "test"])
    with pytest.raises(error, match=said):
        replace(good, **wrong)  # type: ignore[arg-type]


def test_a_corpus_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="no image with a caption"):
        corpus([])


# ---- splits


@pytest.mark.parametrize(
    ("val", "test"), [(-0.1, 0.0), (1.0, 0.0), (0.0, 1.5), (0.5, 0.5), (float("nan"), 0.0)]
)
def test_fractions_out_of_range(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="together less than 1"):
        SplitFractions(val, test)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        SplitFractions(0.1, 0.1, seed)


def test_draw_is_seeded_and_rounds() -> None:
    splits = draw(80, SplitFractions(0.1, 0.2, seed=3))
    assert Counter(splits) == {"train": 56, "val": 8, "test": 16}
    assert splits == draw(80, SplitFractions(0.1, 0.2, seed=3))
    assert splits != draw(80, SplitFractions(0.1, 0.2, seed=4))
    assert draw(5, SplitFractions()) == ["train"] * 5


def test_draw_is_the_same_under_every_numpy() -> None:
    """A frozen stream: a cache that is split again years later is split the same."""
    splits = draw(10, SplitFractions(0.2, 0.2, seed=0))
    assert [number for number, split in enumerate(splits) if split == "val"] == [2, 8]
    assert [number for number, split in enumerate(splits) if split == "test"] == [4, 9]


@pytest.mark.parametrize(
    ("images", "val", "test", "sizes"),
    [
        (3, 0.001, 0.001, [1, 1, 1]),  # each fraction above 0 gets an image
        (10, 0.49, 0.5, [1, 4, 5]),  # and rounding leaves one for train
        (3, 0.45, 0.45, [1, 1, 1]),
        (4, 0.6, 0.0, [2, 2, 0]),
    ],
)
def test_no_split_is_left_empty(images: int, val: float, test: float, sizes: list[int]) -> None:
    counted = Counter(draw(images, SplitFractions(val, test)))
    assert [counted[split] for split in SPLITS] == sizes


def test_too_few_images_to_split() -> None:
    with pytest.raises(DataError, match="2 images are too few to split"):
        draw(2, SplitFractions(0.1, 0.1))


# ---- limit


def test_keep_first_keeps_order_and_captions() -> None:
    whole = corpus(["train", "val", "train", "test", "train", "train"])
    some = keep_first(whole, 4)
    assert some.image_ids == ["i0", "i1", "i2", "i3"]
    assert some.image_splits == ["train", "val", "train", "test"]
    assert some.caption_image.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert some.caption_ids == list(range(100, 107))
    assert some.captions[-1] == "caption 6"
    assert some.caption_image.dtype == np.int64


@pytest.mark.parametrize(
    ("sizes", "limit", "kept"),
    [
        ([80, 10, 10], 10, [8, 1, 1]),
        ([98, 1, 1], 10, [8, 1, 1]),
        ([8, 1, 1], 3, [1, 1, 1]),
        ([2, 1, 97], 2, [0, 0, 2]),  # fewer places than splits: the largest first
        ([5, 0, 5], 3, [2, 0, 1]),
        ([3, 2, 1], 6, [3, 2, 1]),
        ([3, 2, 1], 99, [3, 2, 1]),
    ],
)
def test_keep_first_is_proportional(sizes: list[int], limit: int, kept: list[int]) -> None:
    splits = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    counted = Counter(keep_first(corpus(splits[::-1]), limit).image_splits)
    assert [counted[split] for split in SPLITS] == kept


@pytest.mark.parametrize("sizes", [(1, 1, 1), (50, 3, 1), (7, 5, 2), (0, 4, 90), (33, 33, 34)])
def test_keep_first_keeps_exactly_the_limit(sizes: tuple[int, int, int]) -> None:
    splits = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    for limit in range(1, len(splits) + 1):
        some = keep_first(corpus(splits), limit)
        assert len(some.image_ids) == limit
        if limit >= len(set(splits)):
            assert set(some.image_splits) == set(splits)


def test_a_limit_below_one() -> None:
    with pytest.raises(UsageError, match="the limit 0 must be at least 1 image"):
        keep_first(corpus(["train"]), 0)


# ---- rows to corpus


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  A dog. ", "A dog."),
        ("A dog\nruns", "A dog runs"),
        ("A dog \r\n\n runs\n", "A dog runs"),
        ("A dog  runs", "A dog  runs"),
    ],
)
def test_captions_are_one_line(raw: str, clean: str) -> None:
    assert one_line(raw) == clean


def test_files_are_found_in_order_of_preference(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "b/deep/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows = [row(1), row(2), row(3, files=("deep/3.jpg", "3.jpg")), row(4)]
    folders = ["a", "b", "absent", ""]
    found = assemble("toy", tmp_path, rows, source="s", folders=folders, fractions=None)
    assert found.image_files == ["a/1.jpg", "b/2.jpg", "b/deep/3.jpg", "4.jpg"]
    assert found.origin == "s; splits as given there"


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    rows = [row(1), row(2), row(3)]
    said = r"^toy: 2 of the 3 images in s\.json are missing, the first is 2\.jpg: put .*images \("
    with pytest.raises(DataError, match=said):
        assemble("toy", tmp_path, rows, source="s.json", folders=["images"], fractions=None)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"toy: s\.json names no image"):
        assemble("toy", tmp_path, [], source="s.json", folders=[""], fractions=None)


def test_an_empty_caption_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    with pytest.raises(DataError, match=r"s: image 1\.jpg has an empty caption"):
        assemble("toy", tmp_path, [row(1, captions=[" \n"])], source="s", folders=[""], fractions=None)


def test_own_splits_and_fractions_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"toy has its own splits \(s\): leave the split"):
        assemble("toy", tmp_path, [row(1)], source="s", folders=[""], fractions=SplitFractions(seed=1))
    rows = [row(number, split=split) for number, split in enumerate(["train", "val", "train"])]
    with pytest.raises(UsageError, match="leave the split"):
        assemble("toy", tmp_path, rows, source="s", folders=[""], fractions=SplitFractions(0.1))


def test_fractions_make_a_split_that_a_source_lacks_out_of_its_training_images(tmp_path: Path) -> None:
    splits = ["train", "test"] * 10
    for number in range(20):
        (tmp_path / f"{number}.jpg").touch()
    rows = [row(number, split=split) for number, split in enumerate(splits)]
    given: dict[str, Any] = {"source": "s", "folders": [""]}
    found = assemble("toy", tmp_path, rows, fractions=SplitFractions(val=0.3), **given)
    assert found.image_splits[1::2] == ["test"] * 10
    assert Counter(found.image_splits[::2]) == {"train": 7, "val": 3}
    assert (
        found.origin == "s; splits as given there, and out of train drawn at random: val 0.3, test 0, seed 0"
    )
    with pytest.raises(UsageError, match="has its own splits"):
        assemble("toy", tmp_path, rows, fractions=SplitFractions(0.1, 0.1), **given)
