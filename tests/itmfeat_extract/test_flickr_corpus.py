"""Flickr8k and Flickr30k: Karpathy's file, the authors' captions and lists, Kaggle's tables."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus import Corpus, SplitFractions, read

Tree = Callable[[dict[str, object]], Path]
TOKEN = "Flickr8k.token.txt"
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def photos(*names: str, folder: str = "images") -> dict[str, object]:
    return {f"{folder}/{name}.jpg": None for name in names}


def token(*names: str) -> str:
    return "".join(f"{name}.jpg#{k}\tA dog , {k} .\n" for name in names for k in range(5))


def karpathy_file(**wrong: Any) -> dict[str, Any]:
    image = {
        "filename": "a.jpg",
        "imgid": 0,
        "split": "val",
        "sentences": [{"raw": "A dog .", "sentid": 4}],
    }
    return {"dataset": "flickr8k", "images": [image | wrong]}


# ---- the real files


@pytest.fixture(scope="module")
def three_forms(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """Flickr8k read from each of its files alone, with empty files for the photographs."""
    forms, photographs = [], os.listdir(shared / "flickr8k" / "images")
    for name in ("dataset_flickr8k.json", TOKEN, "captions.txt"):
        root = tmp_path_factory.mktemp("flickr8k")
        shutil.copy(shared / "flickr8k" / name, root)
        (root / "images").mkdir()
        for photograph in photographs:
            (root / "images" / photograph).touch()
        forms.append(read("flickr8k", root))
    return forms


def test_the_real_forms_agree(three_forms: list[Corpus]) -> None:
    first, *others = three_forms
    assert len(first.image_ids) == 6997
    for other in others:
        assert other.image_ids == first.image_ids
        assert other.image_files == first.image_files
        assert other.captions == first.captions
        assert other.caption_ids == first.caption_ids
        assert (other.caption_image == first.caption_image).all()


def test_the_real_splits(three_forms: list[Corpus]) -> None:
    split_file, *others = three_forms
    assert Counter(split_file.image_splits) == {"train": 4997, "val": 1000, "test": 1000}
    for other in others:
        assert Counter(other.image_splits) == {"train": 5597, "val": 700, "test": 700}


def test_quotes_and_commas_survive(three_forms: list[Corpus]) -> None:
    expected = 'A boy in a swimming pool , wearing goggles , gives the " two thumbs up " sign .'
    for form in three_forms:
        assert expected in form.captions
        assert sum('"' in caption for caption in form.captions) == 101


# ---- Karpathy's file


def test_karpathy_goes_first(tree: Tree) -> None:
    root = tree({"dataset_flickr8k.json": karpathy_file(), TOKEN: token("b")} | photos("a"))
    flickr = read("flickr8k", root)
    assert (flickr.image_ids, flickr.image_splits) == (["a"], ["val"])
    assert (flickr.captions, flickr.caption_ids) == (["A dog ."], [4])
    with pytest.raises(UsageError, match=r"flickr8k has its own splits \(dataset_flickr8k\.json\)"):
        read("flickr8k", root, SplitFractions(0.1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"filename": None}, "image number 0: 'filename' is missing or not a text"),
        ({"split": "dev"}, "image a.jpg: the split 'dev' is none of train, restval, val, test"),
        ({"split": 1}, "image a.jpg: 'split' is missing or not a text"),
        ({"sentences": []}, "image a.jpg has no sentences"),
        ({"sentences": {}}, "image a.jpg: 'sentences' is missing or not a list"),
        ({"sentences": ["A dog"]}, "image a.jpg: 'raw' is missing"),
        ({"sentences": [{"raw": "A dog"}]}, "image a.jpg: 'sentid' is missing or not a whole"),
        ({"sentences": [{"raw": "A dog", "sentid": True}]}, "image a.jpg: 'sentid' is missing"),
        ({"sentences": [{"raw": " ", "sentid": 1}]}, "image a.jpg has an empty caption"),
        ({"cocoid": "12"}, "image a.jpg: 'cocoid' is missing or not a whole number"),
        ({"filepath": 3}, "image a.jpg: 'filepath' is missing or not a text"),
    ],
)
def test_karpathy_is_read_strictly(tree: Tree, wrong: dict[str, Any], said: str) -> None:
    root = tree({"dataset_flickr8k.json": karpathy_file(**wrong)} | photos("a"))
    with pytest.raises(DataError, match=rf"dataset_flickr8k\.json.*{said}"):
        read("flickr8k", root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": [', "is not valid JSON"),
        ([], "holds no JSON object"),
        ({"pictures": []}, "'images' is missing or not a list"),
        ({"images": []}, "names no image"),
        ({"images": ["a.jpg"]}, "image number 0: 'filename' is missing"),
        ({"images": 2 * karpathy_file()["images"]}, "an image stands twice"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_broken_split_file(tree: Tree, content: object, said: str) -> None:
    root = tree({"dataset_flickr8k.json": content} | photos("a"))
    with pytest.raises(DataError, match=said) as caught:
        read("flickr8k", root)
    assert "flickr8k" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the authors' captions and lists


@pytest.mark.parametrize("folder", ["images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset"])
def test_the_authors_captions(tree: Tree, folder: str) -> None:
    root = tree({f"Flickr8k_text/{TOKEN}": token("b", "a", "c")} | photos(*"abc", folder=folder))
    flickr = read("flickr8k", root)
    assert flickr.image_ids == ["b", "a", "c"]
    assert flickr.captions[:2] == ["A dog , 0 .", "A dog , 1 ."]
    assert flickr.caption_ids == list(range(15))
    assert Counter(flickr.image_splits) == {"train": 1, "val": 1, "test": 1}


def test_the_lists_are_the_splits(tree: Tree) -> None:
    lists = {LISTS["train"]: "a.jpg\nd.jpg\n", LISTS["val"]: "b.jpg\n", LISTS["test"]: "c.jpg\n"}
    root = tree({TOKEN: token(*"abcde")} | lists | photos(*"abcd"))
    flickr = read("flickr8k", root)
    assert flickr.image_ids == ["a", "b", "c", "d"]
    assert flickr.image_splits == ["train", "val", "test", "train"]
    assert "which leave 1 images out" in flickr.origin
    with pytest.raises(UsageError, match="leave the split fractions out"):
        read("flickr8k", root, SplitFractions(0.1))


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ("a.jpg", None, "devImages.txt is missing in .*: put all the 3 lists there, or none"),
        ("a.jpg\nb.jpg", "b.jpg", "devImages.txt: b.jpg stands in the list of train too"),
        ("a.jpg\ny.jpg\nx.jpg", "b.jpg", "2 images of the split lists have no caption.* x.jpg"),
    ],
)
def test_lists_that_do_not_fit(tree: Tree, train: str, val: str | None, said: str) -> None:
    lists = {LISTS["train"]: train, LISTS["test"]: "c.jpg"}
    root = tree(
        {TOKEN: token(*"abc")} | lists | ({LISTS["val"]: val} if val is not None else {}) | photos(*"abc")
    )
    with pytest.raises(DataError, match=said):
        read("flickr8k", root)


def test_the_entry_that_never_had_a_photograph(tree: Tree) -> None:
    ghost = token("2258277193_586949ec62").replace(".jpg#", ".jpg.1#")
    root = tree({TOKEN: token("a") + ghost + token("b", "c")} | photos(*"abc"))
    assert read("flickr8k", root).image_ids == ["a", "b", "c"]


def test_a_named_image_that_is_missing_is_an_error(tree: Tree) -> None:
    root = tree({TOKEN: token(*"abc")} | photos("a", "c"))
    with pytest.raises(DataError, match=r"1 of the 3 images in Flickr8k\.token\.txt are missing, "):
        read("flickr8k", root)


@pytest.mark.parametrize("line", ["a.jpg A dog .", "a.jpg#0 A dog .", "a.jpg\tA dog .", "#0\tA dog"])
def test_a_line_of_another_form(tree: Tree, line: str) -> None:
    root = tree({TOKEN: token("a") + "\n" + line + "\n"} | photos("a"))
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt, line 7 is not of the form 'FILE#"):
        read("flickr8k", root)


def test_flickr30k_from_the_authors(tree: Tree) -> None:
    root = tree(
        {"results_20130124.token": token(*"abcdefghij")} | photos(*"abcdefghij", folder="flickr30k-images")
    )
    flickr = read("flickr30k", root, SplitFractions(0.2, 0.3, seed=5))
    assert flickr.image_files[0] == "flickr30k-images/a.jpg"
    assert Counter(flickr.image_splits) == {"train": 5, "val": 2, "test": 3}
    assert "val 0.2, test 0.3, seed 5" in flickr.origin


# ---- Kaggle's tables


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        ("A dog , a ball", "A dog , a ball"),
        ('"A dog , a ball"', "A dog , a ball"),
        ('"A sign says "" no , no "" ."', 'A sign says " no , no " .'),
        ('A sign says " no , no " .', 'A sign says " no , no " .'),
        ('" Hi " says " Bo "', '" Hi " says " Bo "'),
        ('"', '"'),
        ('The " GO "', 'The " GO "'),
        (" 3 dogs ", "3 dogs"),
    ],
)
def test_a_cell_of_the_kaggle_table(tree: Tree, cell: str, caption: str) -> None:
    lines = ["image,caption", *(f"{name}.jpg,{cell}" for name in "abc")]
    root = tree({"captions.txt": "\r\n".join(lines)} | photos(*"abc", folder="Images"))
    assert read("flickr8k", root).captions == [caption] * 3


PIPED = """image_name| comment_number| comment
2199200615.jpg| 3| Two dogs run .
2199200615.jpg| 4   A dog runs across the grass .
b.jpg| 0| A sign : " 1 | 2 " .
c.jpg| 0| 4 dogs , a cat .
"""


def test_the_kaggle_table_of_flickr30k(tree: Tree) -> None:
    """With its one row that lacks the separator behind the comment number."""
    folder = "flickr30k_images/flickr30k_images"
    root = tree({"flickr30k_images/results.csv": PIPED} | photos("2199200615", "b", "c", folder=folder))
    flickr = read("flickr30k", root)
    assert flickr.image_ids == ["2199200615", "b", "c"]
    assert flickr.captions == [
        "Two dogs run .",
        "A dog runs across the grass .",
        'A sign : " 1 | 2 " .',
        "4 dogs , a cat .",
    ]


def test_the_kaggle_table_with_commas_and_numbers(tree: Tree) -> None:
    table = 'image_name,comment_number,comment\na.jpg,0,"A dog, a cat"\na.jpg,1, 4 dogs , a cat\n'
    table += "b.jpg,0,Hi\nc.jpg,0,Ho\n"
    root = tree({"captions.txt": table} | photos(*"abc"))
    assert read("flickr30k", root).captions == ["A dog, a cat", "4 dogs , a cat", "Hi", "Ho"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "captions.txt has none of the headers"),
        ("picture,caption\na.jpg,Hi", "line 1 has none of the headers image,caption or|image_name"),
        ("image,caption\na.jpg", "line 2 is not of the form 'IMAGE,CAPTION'"),
        ("image,caption\n,A dog", "line 2 is not of the form"),
        ("image,caption\na.jpg,", "image a.jpg has an empty caption"),
        ("image_name,comment_number,comment\na.jpg,Hi", "line 2 is not of the form 'IMAGE_NAME,CO"),
        ("image,caption\n", "captions.txt names no image"),
    ],
)
def test_a_broken_table(tree: Tree, table: str, said: str) -> None:
    root = tree({"captions.txt": table} | photos("a"))
    with pytest.raises(DataError, match=said):
        read("flickr8k", root, SplitFractions())
