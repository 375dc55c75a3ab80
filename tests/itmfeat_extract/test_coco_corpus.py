"""COCO: Karpathy's file, the captions files of both releases, and their image folders."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus import SplitFractions, read

Tree = Callable[[dict[str, object]], Path]


def captions_file(ids: list[int], **other: Any) -> dict[str, Any]:
    """A captions file with two captions an image, the later id first."""
    content = {
        "images": [{"id": key, "file_name": f"{key:012d}.jpg"} for key in ids],
        "annotations": [
            {"id": 10 * key + place, "image_id": key, "caption": f"caption {place} of {key} "}
            for place in (2, 1)
            for key in ids
        ],
    }
    return content | other


def karpathy_file(*images: tuple[str, int, str]) -> dict[str, Any]:
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": folder,
                "filename": f"COCO_{folder}_{key:012d}.jpg",
                "split": split,
                "cocoid": key,
                "sentences": [{"raw": f"A man\nwith {key}", "sentid": 7 * key}],
            }
            for folder, key, split in images
        ],
    }


THREE = karpathy_file(("val2014", 3, "test"), ("train2014", 1, "train"), ("val2014", 2, "restval"))


def photos(folder: str, *ids: int, name: str = "{:012d}.jpg") -> dict[str, object]:
    return {f"{folder}/{name.format(key)}": None for key in ids}


def test_coco_mini_as_typed(shared: Path) -> None:
    mini = read("coco", shared / "coco-mini")
    assert Counter(mini.image_splits) == {"train": 64, "val": 8, "test": 8}
    assert len(mini.captions) == 400
    assert all((mini.root / file).is_file() for file in mini.image_files)
    assert mini.origin.endswith("splits drawn at random: val 0.1, test 0.1, seed 0")
    again = read("coco", shared / "coco-mini", SplitFractions(0.25, 0.25, seed=1))
    assert Counter(again.image_splits) == {"train": 40, "val": 20, "test": 20}


@pytest.mark.parametrize("base", ["", "images/"])
def test_karpathy_with_the_folders_of_2014(tree: Tree, base: str) -> None:
    root = tree(
        {"dataset_coco.json": THREE}
        | photos(f"{base}train2014", 1, name="COCO_train2014_{:012d}.jpg")
        | photos(f"{base}val2014", 2, 3, name="COCO_val2014_{:012d}.jpg")
    )
    coco = read("coco", root)
    assert coco.image_ids == ["3", "1", "2"]
    assert coco.image_files[:2] == [
        f"{base}val2014/COCO_val2014_000000000003.jpg",
        f"{base}train2014/COCO_train2014_000000000001.jpg",
    ]
    assert coco.image_splits == ["test", "train", "train"]
    assert coco.captions == ["A man with 3", "A man with 1", "A man with 2"]
    assert coco.caption_ids == [21, 7, 14]


@pytest.mark.parametrize("base", ["", "images/"])
def test_karpathy_with_the_folders_of_2017(tree: Tree, base: str) -> None:
    root = tree(
        {"annotations/dataset_coco.json": THREE}
        | photos(f"{base}train2017", 1, 3)
        | photos(f"{base}val2017", 2)
    )
    files = read("coco", root).image_files
    assert files == [
        f"{base}train2017/000000000003.jpg",
        f"{base}train2017/000000000001.jpg",
        f"{base}val2017/000000000002.jpg",
    ]


def test_karpathy_goes_before_the_captions_files(tree: Tree) -> None:
    root = tree(
        {"dataset_coco.json": THREE, "annotations/captions_train2017.json": captions_file([9])}
        | photos("train2017", 1, 2, 3)
    )
    assert read("coco", root).origin == "dataset_coco.json; splits as given there"


def test_karpathy_has_splits_of_its_own(tree: Tree) -> None:
    root = tree({"dataset_coco.json": THREE} | photos("train2017", 1, 2, 3))
    with pytest.raises(UsageError, match="coco has its own splits"):
        read("coco", root, SplitFractions(0.1, 0.1))


def test_a_captions_file_alone_is_split(tree: Tree) -> None:
    ids = list(range(1, 11))
    root = tree({"annotations/captions_val2014.json": captions_file(ids)} | photos("images", *ids))
    coco = read("coco", root)
    assert Counter(coco.image_splits) == {"train": 8, "val": 1, "test": 1}
    assert coco.captions[:2] == ["caption 1 of 1", "caption 2 of 1"]  # in the order of their ids
    assert coco.caption_ids[:4] == [11, 12, 21, 22]
    assert read("coco", root).image_splits == coco.image_splits


def test_train_and_val_files_are_the_splits_and_half_of_val_is_test(tree: Tree) -> None:
    root = tree(
        {
            "annotations/captions_train2017.json": captions_file([5, 4]),
            "annotations/captions_val2017.json": captions_file([6, 7, 8, 9]),
        }
        | photos("train2017", 4, 5)
        | photos("val2017", 6, 7, 8, 9)
    )
    coco = read("coco", root)
    assert coco.image_ids == ["5", "4", "6", "7", "8", "9"]
    assert coco.image_splits[:2] == ["train", "train"]
    assert sorted(coco.image_splits[2:]) == ["test", "test", "val", "val"]
    assert "half of the val images" in coco.origin
    assert coco.origin.startswith("captions_train2017.json and captions_val2017.json")
    with pytest.raises(UsageError, match="leave the split fractions out"):
        read("coco", root, SplitFractions(0.1))


def test_of_two_years_the_one_with_images_counts(tree: Tree) -> None:
    both = {f"annotations/captions_train{year}.json": captions_file([1]) for year in (2014, 2017)}
    root = tree(both | {"annotations/captions_val2017.json": captions_file([2, 3])})
    with pytest.raises(DataError, match="captions of 2014 and of 2017, which are the same"):
        read("coco", root)
    tree(photos("images/train2017", 1) | photos("images/val2017", 2, 3))
    assert sorted(read("coco", root).image_splits) == ["test", "train", "val"]


def test_missing_photographs(tree: Tree) -> None:
    root = tree({"annotations/captions_train2017.json": captions_file([1, 2, 3])} | photos("train2017", 2))
    said = "2 of the 3 images in captions_train2017.json are missing, the first is 000000000001.jpg"
    with pytest.raises(DataError, match=said):
        read("coco", root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ({}, "'annotations' is missing or not a list"),
        ({"annotations": []}, "'images' is missing or not a list"),
        ({"annotations": [], "images": []}, "names no image"),
        ({"annotations": [3], "images": []}, "annotation number 0: 'id' is missing"),
        (captions_file([1], images=[{"id": "1"}]), "image number 0: 'id' is missing or not a who"),
        (captions_file([1], images=[{"id": 1}]), "image number 0: 'file_name' is missing"),
        (captions_file([1], images=[]), "captions of 1 images that 'images' does not list"),
        (captions_file([1, 2], annotations=[]), "2 images have no caption, .* 000000000001.jpg"),
        (captions_file([1, 1]), "1 images have no caption"),
    ],
)
def test_a_captions_file_is_read_strictly(tree: Tree, content: object, said: str) -> None:
    root = tree({"annotations/captions_train2014.json": content} | photos("train2014", 1))
    with pytest.raises(DataError, match=rf"captions_train2014\.json.*{said}") as caught:
        read("coco", root)
    assert "\n" not in str(caught.value)
