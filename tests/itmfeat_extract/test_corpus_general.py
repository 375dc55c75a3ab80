"""Layouts that any dataset may have: tables in a folder, ALBEF, tar shards, Hugging Face's datasets."""

import csv
import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus import Corpus, SplitFractions, read

Tree = Callable[[dict[str, object]], Path]
IMAGES = {f"{number}.jpg": None for number in range(6)}
SPLITS = ["train"] * 4 + ["val", "test"]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(corpus: Corpus, row: int) -> int:
    """Which picture a row opens."""
    with corpus.open(row) as file, Image.open(file) as image:
        return int(image.getpixel((0, 0))[0])  # type: ignore[index]


def table(rows: list[list[str]], mark: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=mark, lineterminator="\n").writerows(rows)
    return file.getvalue()


# ---- tables


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


# ---- names


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a\0b"])
def test_names_that_are_no_folder(tree: Tree, name: str) -> None:
    with pytest.raises(UsageError, match="--name gives"):
        read("folder", tree(IMAGES), name=name)


def test_a_dataset_of_its_own_has_its_name(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"--name gives .*'mine' for coco"):
        read("coco", tree(IMAGES), name="mine")


# ---- shards


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def wds(first: int, count: int, form: str) -> dict[str, bytes]:
    """Samples as img2dataset, CLIP_benchmark or the shards of Karpathy's COCO have them."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        key = f"s{number:07d}" if form == "benchmark" else f"{number:09d}"
        members[f"{key}.{'webp' if form == 'benchmark' else 'jpg'}"] = picture(number)
        if form == "img2dataset":
            members[f"{key}.txt"] = f"a {number}".encode()
            members[f"{key}.json"] = json.dumps({"caption": f"a {number}", "key": key, "exif": "{}"}).encode()
        elif form == "benchmark":
            members[f"{key}.txt"] = f"a {number}\nb {number}".encode()
        else:
            members[f"{key}.json"] = json.dumps(
                {"captions": [f"a {number}", f"b {number}"], "cocoid": 1}
            ).encode()
    return members


@pytest.mark.parametrize("form", ["img2dataset", "benchmark", "karpathy"])
def test_shards(tmp_path: Path, form: str) -> None:
    for number in range(3):
        shard(tmp_path / "wds" / f"{number:05d}.tar", wds(4 * number, 4, form))
    found = read("webdataset", tmp_path / "wds")
    assert len(found.image_ids) == 12
    assert len(found.captions) == (12 if form == "img2dataset" else 24)
    assert [red(found, row) for row in range(12)] == list(range(12))
    assert found.image_files[5].startswith("00001.tar/")
    assert Counter(found.image_splits)["train"] == 10
    again = pickle.loads(pickle.dumps(found))  # workers of another process get it so
    assert red(again, 11) == 11
    some = read("webdataset", tmp_path / "wds" / "{00001..00002}.tar", limit=6)
    assert some.name == "wds"
    assert {red(some, row) for row in range(6)} < set(range(4, 12))


def test_splits_of_shards_and_numbers_that_start_anew(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        shard(tmp_path / split / f"{split}-00000.tar", wds(0, count, "karpathy"))
    found = read("webdataset", tmp_path)
    assert Counter(found.image_splits) == {"train": 3, "val": 1, "test": 2}
    assert found.image_ids[:2] == ["test/test-00000.tar/000000000", "test/test-00000.tar/000000001"]
    shard(tmp_path / "more" / "0.tar", wds(9, 1, "karpathy"))
    with pytest.raises(DataError, match=r"0\.tar is not called after a split"):
        read("webdataset", tmp_path)


def test_img2dataset_as_files(tree: Tree) -> None:
    files: dict[str, object] = {
        f"00000/{name}": content for name, content in wds(0, 5, "img2dataset").items()
    }
    found = read("webdataset", tree({**files, "00000_stats.json": {"count": 5}}))
    assert found.captions == [f"a {number}" for number in range(5)]
    assert [red(found, row) for row in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "no tar file, or damaged"),
        (lambda raw: b"x" * 2000, "no tar file, or damaged"),
        (lambda raw: raw[:700], "damaged|cut off"),
        (lambda raw: raw[:1024], "cut off"),
        (lambda raw: raw[:1024] + b"\1" * 512 + raw[1536:], "cut off or damaged"),
        (lambda raw: __import__("gzip").compress(raw), "no tar file, or damaged"),
    ],
)
def test_damaged_shards(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = shard(tmp_path / "0.tar", wds(0, 4, "img2dataset"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=said):
        read("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.txt": b"a dog"}, "has no picture"),
        ({"a.jpg": b""}, "has no caption"),
        ({"a.jpg": b"", "a.txt": b" \n"}, "has an empty caption"),
        ({"a.jpg": b"", "a.txt": b"\xff"}, "not UTF-8"),
        ({"a.jpg": b"", "a.json": b"{"}, "not valid JSON"),
        ({"a.jpg": b"", "a.json": b"[" * 100_000}, "not valid JSON"),
        ({"a.jpg": b"", "a.png": b"", "a.txt": b"a"}, "second picture"),
    ],
)
def test_samples_that_do_not_fit(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    shard(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=said):
        read("webdataset", tmp_path)


def test_images_beside_their_texts_are_split_by_folders_called_so(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/a", "test/a"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / f"{place}.jpg").touch()
        (tmp_path / f"{place}.txt").write_text(place)
    found = read("folder", tmp_path)
    assert found.image_splits == [caption.partition("/")[0] for caption in found.captions]
    assert "drawn at random" in read("folder", tmp_path, fractions=SplitFractions(0.5)).origin
    (tmp_path / "c.jpg").touch()
    (tmp_path / "c.txt").write_text("elsewhere")
    assert "drawn at random" in read("folder", tmp_path).origin
    (tmp_path / "c.png").touch()
    with pytest.raises(DataError, match=r"c\.jpg and .*c\.png are two images of one name"):
        read("folder", tmp_path)


def test_folders_of_two_splits_leave_the_third_to_a_draw(tmp_path: Path) -> None:
    for place in ("train/a", "train/test_tube/b", "test/a"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / f"{place}.jpg").touch()
        (tmp_path / f"{place}.txt").write_text(place)
    assert "drawn at random" in read("folder", tmp_path).origin
    (tmp_path / "val").mkdir()
    (tmp_path / "val/a.jpg").touch()
    (tmp_path / "val/a.txt").write_text("val/a")
    found = read("folder", tmp_path)
    assert found.image_splits == [caption.partition("/")[0] for caption in found.captions]


def test_links_in_a_shard_are_no_members(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", wds(0, 3, "img2dataset"))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        outside = tarfile.TarInfo("../../etc/x.txt")
        outside.size = 5
        tar.addfile(outside, io.BytesIO(b"a dog"))
    with pytest.raises(DataError, match=r"sample '\.\./\.\./etc/x' has no picture"):
        read("webdataset", tmp_path)


def test_patterns_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*000\.tar"):
        read("webdataset", tmp_path / "{000..003}.tar")
    with pytest.raises(UsageError, match="more than 100000 shards"):
        read("webdataset", tmp_path / "{0..99999999}{0..99999999}.tar")
    with pytest.raises(DataError, match=r"no table .* and no image with a \.txt"):
        read("webdataset", tmp_path)


# ---- Hugging Face


def saved(folder: Path, rows: list[dict[str, object]], parts: int = 2) -> None:
    """What `Dataset.save_to_disk` writes: Arrow streams and two JSON files."""
    folder.mkdir(parents=True)
    whole = pa.Table.from_pylist(rows)
    names = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    step = -(-len(rows) // parts)
    for part, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, whole.schema) as stream:
            stream.write_table(whole.slice(part * step, step), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def rows_of(first: int, count: int) -> list[dict[str, object]]:
    return [
        {"image": {"bytes": picture(i), "path": "x.png"}, "caption": [f"a {i}", f"b {i}"], "img_id": str(i)}
        for i in range(first, first + count)
    ]


def test_datasets_on_disk(tmp_path: Path) -> None:
    saved(tmp_path / "one", rows_of(0, 7))
    found = read("datasets", tmp_path / "one")
    assert [red(found, row) for row in range(7)] == list(range(7))
    assert found.captions[:3] == ["a 0", "b 0", "a 1"]
    assert found.image_ids[:2] == ["0", "1"]
    assert red(pickle.loads(pickle.dumps(found)), 6) == 6
    for split, first in (("train", 0), ("validation", 7), ("test", 9)):
        saved(tmp_path / "dict" / split, rows_of(first, 3 if split == "train" else 2))
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    found = read("datasets", tmp_path / "dict")
    assert found.image_splits == ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    assert [red(found, row) for row in range(7)] == [0, 1, 2, 7, 8, 9, 10]


@pytest.mark.parametrize("bare", [False, True])
def test_parquet_with_pictures(tmp_path: Path, bare: bool) -> None:
    """A mirror on the hub: shards by split, a row a caption, the picture repeated."""
    for split, first in (("train", 0), ("test", 4)):
        rows = [
            {
                "image": row["image"]["bytes"] if bare else row["image"],
                "text": caption,
                "image_id": row["img_id"],
            }  # type: ignore[index]
            for row in rows_of(first, 4)
            for caption in row["caption"]  # type: ignore[attr-defined]
        ]
        (tmp_path / "data").mkdir(exist_ok=True)
        path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    found = read("datasets", tmp_path)
    assert sorted(red(found, row) for row in range(8)) == list(range(8))
    assert found.caption_image.tolist() == [row for row in range(8) for _ in range(2)]
    assert Counter(found.image_splits) == {"train": 4, "test": 4}


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "column", "state", "missing", "outside"])
def test_damaged_datasets(tmp_path: Path, damage: str) -> None:
    saved(tmp_path / "d", rows_of(0, 6), parts=1)
    file, state = tmp_path / "d" / "data-00000-of-00001.arrow", tmp_path / "d" / "state.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-400])
    elif damage in ("empty", "text"):
        file.write_bytes(b"" if damage == "empty" else b"no arrow at all" * 9)
    elif damage == "column":
        file.unlink()
        (tmp_path / "d").joinpath("state.json").unlink()
        pq.write_table(pa.table({"image": [1, 2], "caption": ["a", "b"]}), tmp_path / "d" / "x.parquet")
    elif damage == "state":
        state.write_text('{"_data_files": [{}]}')
    elif damage == "missing":
        file.unlink()
    else:
        state.write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    said = r"cannot be read as a table|names no image|'filename' is|lacks|leads out"
    with pytest.raises(DataError, match=said):
        read("datasets", tmp_path / "d")


def test_a_picture_that_is_only_named_stays_inside(tmp_path: Path) -> None:
    rows = rows_of(0, 4)
    rows[1]["image"] = {"bytes": None, "path": "/etc/passwd"}
    rows[2]["image"] = {"bytes": None, "path": None}
    rows[3]["image"] = {"bytes": None, "path": "3.png"}
    saved(tmp_path / "d", rows, parts=1)
    (tmp_path / "d" / "3.png").write_bytes(picture(3))
    found = read("datasets", tmp_path / "d")
    assert (red(found, 0), red(found, 3)) == (0, 3)
    with pytest.raises(DataError, match="leads out of the dataset's folder"):
        found.open(1)
    with pytest.raises(DataError, match="has no picture"):
        found.open(2)
