"""Folders with a table of captions, as CSV or as ALBEF has them, or texts beside the images; their names."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus import Corpus, SplitFractions, read

Tree = Callable[[dict[str, object]], Path]
IMAGES = {f"{number}.jpg": None for number in range(6)}
SPLITS = ["train"] * 4 + ["val", "test"]


def table(rows: list[list[str]], mark: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=mark, lineterminator="\n").writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        {"captions.csv": table([["image", "caption"], *([f"{i}.jpg", f'A "dog", {i}'] for i in range(6))])},
        {
            "any.csv": table(
                [["caption", "filename"], *([f'A "dog", {i}', f"{i}.jpg"] for i in range(6))], ";"
            )
        },
        {"any.tsv": "".join(f'{i}.jpg\tA "dog", {i}\r\n' for i in range(6))},
        {
            "metadata.jsonl": "".join(
                json.dumps({"file_name": f"{i}.jpg", "text": f'A "dog", {i}'}) + "\n" for i in range(6)
            )
        },
        {**{f"{i}.txt": f'A "dog", {i}' for i in range(6)}, "readme.txt": "no caption"},
    ],
    ids=["csv", "semicolons", "tsv without header", "jsonl", "texts beside the images"],
)
def test_one_caption_a_line(tree: Tree, files: dict[str, object]) -> None:
    found = read("folder", tree({**IMAGES, **files}), name="pets")
    assert found.name == "pets"
    assert found.captions == [f'A "dog", {i}' for i in range(6)]
    assert found.image_files == [f"{i}.jpg" for i in range(6)]
    assert Counter(found.image_splits) == {"train": 4, "val": 1, "test": 1}  # drawn: none is given


def test_several_captions_a_line_and_split_columns(tree: Tree) -> None:
    rows = [
        {"image": f"{i}.jpg", "caption": [f"a{i}", f"b{i}"], "split": split} for i, split in enumerate(SPLITS)
    ]
    numbered = [["image", "caption_1", "caption_2", "split"]]
    numbered += [[f"{i}.jpg", f"a{i}", f"b{i}", split.upper()] for i, split in enumerate(SPLITS)]
    quoted = [
        ["filename", "raw", "split"],
        *([f"{i}.jpg", f'["a{i}", "b{i}"]', s] for i, s in enumerate(SPLITS)),
    ]
    repeated = [["image", "caption", "split"]]
    repeated += [[f"{i}.jpg", f"{letter}{i}", s] for letter in "ab" for i, s in enumerate(SPLITS)]
    root = tree({f"images/{name}": None for name in IMAGES})
    forms: list[Corpus] = []
    for form in (table(numbered), table(quoted), table(repeated)):
        (root / "captions.csv").write_text(form)
        forms.append(read("folder", root))
    (root / "captions.csv").unlink()
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms.append(read("folder", root))
    (root / "captions.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(rows), root / "captions.parquet")
    forms.append(read("folder", root))
    for found in forms:
        assert found.captions == [f"{letter}{i}" for i in range(6) for letter in "ab"]
        assert found.image_splits == SPLITS
        assert found.image_files[3] == "images/3.jpg"
        assert found.name == root.name
    with pytest.raises(UsageError, match="has its own splits"):
        read("folder", root, SplitFractions(0.1, 0.1))


def test_splits_by_file(tree: Tree) -> None:
    one = table([["image", "caption"], ["0.jpg", "a"]])
    root = tree(
        {**IMAGES, "train.csv": one, "dev.csv": one.replace("0", "1"), "my-test.csv": one.replace("0", "2")}
    )
    found = read("folder", root)
    assert dict(zip(found.image_files, found.image_splits, strict=True)) == {
        "0.jpg": "train",
        "1.jpg": "val",
        "2.jpg": "test",
    }
    (root / "dev.csv").write_text(one)
    with pytest.raises(DataError, match=r"0\.jpg stands in two splits"):
        read("folder", root)
    (root / "other.csv").write_text(one)
    with pytest.raises(DataError, match="holds several tables"):
        read("folder", root)
    (root / "captions.CSV").write_text(one + "1.jpg,b\n2.jpg,c\n")
    assert read("folder", root).image_files == ["0.jpg", "1.jpg", "2.jpg"]
    (root / "metadata.jsonl").write_text("{}")
    with pytest.raises(DataError, match="holds several tables"):
        read("folder", root)


def test_albef(tree: Tree) -> None:
    train = [
        {"image": f"val2014/{i}.jpg", "caption": f"{letter}", "image_id": f"coco_{i}"}
        for i in (0, 1)
        for letter in "ab"
    ]
    root = tree(
        {
            **{f"val2014/{name}": None for name in IMAGES},
            "coco_train.json": train,
            "coco_val.json": [{"image": "val2014/2.jpg", "caption": ["a", "b", "c"]}],
            "coco_test.json": [{"image": "val2014/3.jpg", "caption": ["a"]}],
            "coco_val_gt.json": {"not": "a list"},
        }
    )
    found = read("albef", root)
    assert found.image_splits == ["train", "train", "val", "test"]
    assert found.caption_image.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,caption\n0.jpg,a,b\n", "line 2 has 3 fields where 2 are expected: quote"),
        ('image,caption\n0.jpg,"a\n', "line 2: .*: quote captions"),
        ("name,words\n0.jpg,a\n", "line 1 is no header"),
        ("", "names no image"),
        ("image,caption\n", "names no image"),
        ("image,caption\n0.jpg,\n1.jpg,a\n2.jpg,b\n", "0.jpg has an empty caption"),
        ("image,caption\n,a dog\n", "names no image"),
        ("image,caption,split\n0.jpg,a,train\n1.jpg,b,\n", "1 images have no split"),
        ("image,caption,split\n0.jpg,a,train\n1.jpg,b,holdout\n", "the split 'holdout' is none of"),
        (b"image,caption\n0.jpg,\xff\xfe\n", r"is not UTF-8 text \(line 2\): save it as UTF-8"),
        ("image,caption\n0.jpg,a".encode("utf-16"), "is not UTF-8"),
        ("image,caption\n9.jpg,a\n1.jpg,a\n2.jpg,b\n", "1 of the 3 images .* are missing"),
        ("image,caption\n0.jpg," + "a" * 200_000, "field larger than"),
    ],
)
def test_a_table_that_does_not_fit(tree: Tree, content: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read("folder", tree({**IMAGES, "captions.csv": content}))


def test_images_beside_their_texts_are_split_by_folders_called_so(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/a", "test/a"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / f"{place}.jpg").touch()
        (tmp_path / f"{place}.txt").write_text(place)
    found = read("folder", tmp_path)
    assert found.image_splits == [caption.partition("/")[0] for caption in found.captions]
    with pytest.raises(UsageError, match="has its own splits"):
        read("folder", tmp_path, fractions=SplitFractions(0.5))
    (tmp_path / "c.jpg").touch()
    (tmp_path / "c.txt").write_text("elsewhere")
    assert "drawn at random" in read("folder", tmp_path).origin
    (tmp_path / "c.png").touch()
    with pytest.raises(DataError, match=r"c\.jpg and .*c\.png are two images of one name"):
        read("folder", tmp_path)


def test_folders_of_two_splits_leave_the_third_to_fractions(tmp_path: Path) -> None:
    places = [*(f"train/{number}" for number in range(7)), "train/test_tube/b", "test/a"]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / f"{place}.jpg").touch()
        (tmp_path / f"{place}.txt").write_text(place)
    found = read("folder", tmp_path)
    assert found.image_splits == [caption.partition("/")[0] for caption in found.captions]
    found = read("folder", tmp_path, fractions=SplitFractions(0.25))
    assert Counter(found.image_splits) == {"train": 6, "val": 2, "test": 1}


# ---- names


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a\0b"])
def test_names_that_are_no_folder(tree: Tree, name: str) -> None:
    with pytest.raises(UsageError, match="--name gives"):
        read("folder", tree(IMAGES), name=name)


def test_a_dataset_of_its_own_has_its_name(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"--name gives .*'mine' for coco"):
        read("coco", tree(IMAGES), name="mine")
