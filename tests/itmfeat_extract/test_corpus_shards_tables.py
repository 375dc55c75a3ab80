"""Datasets with their pictures inside: tar shards, and tables of Hugging Face in Arrow and Parquet."""

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
from itmfeat_extract.corpus import Corpus, read

Tree = Callable[[dict[str, object]], Path]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(corpus: Corpus, row: int) -> int:
    """Which picture a row opens."""
    with corpus.open(row) as file, Image.open(file) as image:
        return int(image.getpixel((0, 0))[0])  # type: ignore[index]


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
