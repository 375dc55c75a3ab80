"""Annotation files from strangers: a corpus or one sentence, and never a path outside the folder."""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import fails

from itmfeat.errors import DataError, ItmfeatError
from itmfeat_extract.corpus import Corpus, read
from itmfeat_extract.pipeline import write_corpus

Tree = Callable[[dict[str, object]], Path]

EVIL = {
    "up": "../../etc/passwd",
    "deep": "images/../../../../../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "nul": "a\0.jpg",
    "half": "\ud800.jpg",
    "dots": "..",
    "nothing": "",
    "linked file": "link.jpg",
    "linked folder": "linked/secret.jpg",
    "long": "a" * 5000 + ".jpg",
    "folder": "images",
}


def karpathy(name: str, caption: str = "a dog") -> Any:
    sentences = [{"raw": caption, "sentid": 1}]
    return {"images": [{"filename": name, "split": "train", "sentences": sentences}]}


def coco(name: str, caption: str = "a dog") -> Any:
    ids = range(4)
    return {
        "images": [{"id": i, "file_name": name if i == 0 else f"{i}.jpg"} for i in ids],
        "annotations": [{"id": i, "image_id": i, "caption": caption} for i in ids],
    }


def lines(name: str, caption: str = "a dog") -> str:
    entries = [
        {"image": name, "caption": caption},
        *({"image": f"{i}.jpg", "caption": "x"} for i in (1, 2, 3)),
    ]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


FORMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "flickr8k": ("dataset_flickr8k.json", karpathy),
    "coco": ("annotations/captions_train2017.json", coco),
    "folder": ("captions.jsonl", lines),
    "albef": ("list.json", lambda *text: [json.loads(line) for line in lines(*text).splitlines()]),
}


@pytest.fixture
def guarded(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset's folder beside a secret; opening or listing anything outside the folder fails the test."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    root = tree({"1.jpg": b"", "2.jpg": b"", "3.jpg": b"", "images/x.jpg": b""})
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "linked").symlink_to(outside)
    opened, listed = Path.open, os.scandir

    def check(path: Any) -> None:
        place = os.path.realpath(path)
        assert place.startswith(os.path.realpath(root)) or not place.startswith((str(tmp_path), "/etc")), path

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        check(self)
        return opened(self, *args, **kwargs)

    def watched_list(path: Any = ".") -> Any:
        check(path)
        return listed(path)

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(os, "scandir", watched_list)
    return root


@pytest.mark.parametrize("reader", FORMS)
@pytest.mark.parametrize("evil", EVIL)
def test_names_that_lead_elsewhere(guarded: Path, reader: str, evil: str) -> None:
    file, form = FORMS[reader]
    (guarded / file).parent.mkdir(exist_ok=True)
    (guarded / file).write_text(json.dumps(made) if not isinstance(made := form(EVIL[evil]), str) else made)
    with pytest.raises(DataError, match=r"^[^\n]*$"):
        read(reader, guarded).open(0)


@pytest.mark.parametrize("reader", FORMS)
def test_annotations_that_are_links_out(guarded: Path, tmp_path: Path, reader: str) -> None:
    file, form = FORMS[reader]
    (guarded / file).parent.mkdir(exist_ok=True)
    made = form("1.jpg")
    with open(tmp_path / "outside" / "list", "w") as target:
        target.write(made if isinstance(made, str) else json.dumps(made))
    (guarded / file).symlink_to(tmp_path / "outside" / "list")
    with pytest.raises(DataError, match="is a link out of"):
        read(reader, guarded)


def test_the_folder_itself_may_be_a_link(guarded: Path, tmp_path: Path) -> None:
    (guarded / "captions.jsonl").write_text(lines("images/x.jpg"))
    (tmp_path / "alias").symlink_to(guarded)
    corpus = read("folder", tmp_path / "alias")
    assert corpus.name == "data"
    with corpus.open(0) as file:
        assert file.read() == b""


def test_an_image_that_becomes_a_link_or_a_pipe(guarded: Path) -> None:
    (guarded / "captions.jsonl").write_text(lines("images/x.jpg"))
    corpus = read("folder", guarded)
    (guarded / "images" / "x.jpg").unlink()
    os.mkfifo(guarded / "images" / "x.jpg")
    with pytest.raises(DataError, match="is no plain file"):
        corpus.open(0)
    (guarded / "1.jpg").unlink()
    (guarded / "1.jpg").symlink_to(guarded / "link.jpg")
    with pytest.raises(DataError, match="is a link out of"):
        corpus.open(1)


@pytest.mark.parametrize("reader", FORMS)
@pytest.mark.parametrize("caption", ["👩‍👩‍👧 läuft 狗", "a\0b", "\u202edog", "a\u2028b", "x" * 100_000])
def test_odd_captions_come_through(tree: Tree, tmp_path: Path, reader: str, caption: str) -> None:
    file, form = FORMS[reader]
    made = form("0.jpg", caption)
    if reader == "flickr8k":
        made["images"][0]["split"] = "train"
    root = tree({**{f"{i}.jpg": b"" for i in range(4)}, "images/0.jpg": b"", file: made})
    corpus = read(reader, root)
    assert corpus.captions[0] == caption.replace("\u2028", " ")
    write_corpus(corpus, tmp_path / "cache")


@pytest.mark.parametrize("reader", FORMS)
@pytest.mark.parametrize("caption", ["", " \n\t", "\ud83d", None, 7, ["a", 3], [], {}, True])
def test_captions_that_are_none(tree: Tree, reader: str, caption: Any) -> None:
    file, form = FORMS[reader]
    root = tree({**{f"{i}.jpg": b"" for i in range(4)}, "images/0.jpg": b"", file: form("0.jpg", caption)})
    with pytest.raises(DataError, match=r"caption|'raw'"):
        read(reader, root)


@pytest.mark.slow
def test_a_million_captions_on_one_image(tree: Tree) -> None:
    table = "image,caption\n1.jpg,a\n2.jpg,b\n" + "0.jpg,a dog\n" * 1_000_000
    corpus = read("folder", tree({**{f"{i}.jpg": b"" for i in range(3)}, "captions.csv": table}))
    assert (len(corpus.captions), len(corpus.image_ids)) == (1_000_002, 3)
    assert corpus.caption_image[-1] == 2


@pytest.mark.parametrize("reader", FORMS)
def test_truncated_anywhere(tree: Tree, reader: str) -> None:
    """Every prefix of the file is a smaller dataset or an error in one sentence."""
    file, form = FORMS[reader]
    made = form("0.jpg")
    whole = (made if isinstance(made, str) else json.dumps(made)).encode()
    root = tree({**{f"{i}.jpg": b"" for i in range(4)}, "images/0.jpg": b"", file: whole})
    for length in range(0, len(whole), 3):
        (root / file).write_bytes(whole[:length])
        _ends_well(reader, root)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("0.jpg"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "id", "image", "caption", "split"]), inner
        )
    ),
    max_leaves=10,
)


def _ends_well(reader: str, root: Path) -> None:
    with contextlib.suppress(ItmfeatError):
        assert isinstance(read(reader, root), Corpus)


@pytest.mark.parametrize("reader", FORMS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=JSON,
    key=st.sampled_from(["images", "annotations", "id", "caption", "image", "split", "filename"]),
)
def test_wrong_types_anywhere(tree: Tree, reader: str, content: Any, key: str) -> None:
    """One field after another replaced by anything at all."""
    file, form = FORMS[reader]
    made = form("0.jpg")
    entries = [json.loads(line) for line in made.splitlines()] if isinstance(made, str) else made
    _replace(entries, key, content)
    text = (
        "".join(json.dumps(entry) + "\n" for entry in entries)
        if isinstance(made, str)
        else json.dumps(entries)
    )
    _ends_well(reader, tree({**{f"{i}.jpg": b"" for i in range(4)}, "images/0.jpg": b"", file: text}))


def _replace(value: Any, key: str, content: Any) -> None:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _replace(inner, key, content)
    if isinstance(value, dict) and key in value:
        value[key] = content


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5000), noise=st.binary(min_size=1, max_size=20))
def test_bytes_changed_anywhere(tree: Tree, place: int, noise: bytes) -> None:
    for number, (reader, name, whole) in enumerate(_files()):
        start = place % len(whole)
        changed = whole[:start] + noise + whole[start + len(noise) :]
        pictures = {f"{number}/images/{i}.jpg": b"" for i in range(4)}
        _ends_well(reader, tree({**pictures, f"{number}/{name}": changed}) / str(number))


@cache
def _files() -> list[tuple[str, str, bytes]]:
    """A small file of each kind that is no JSON."""
    rows = [{"image": {"bytes": b"x", "path": None}, "caption": f"a {i}"} for i in range(4)]
    table, shard = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name in ("0.jpg", "0.txt", "1.jpg", "1.json", "2.jpg", "2.txt"):
            content = b'{"caption": "a"}' if name.endswith("json") else b"a"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    csv = "".join(f'{i}.jpg,"a ""dog"", {i}"\n' for i in range(4))
    token = "".join(f"{i}.jpg#{n}\ta dog {i}\n" for i in range(4) for n in range(2))
    return [
        ("datasets", "d.parquet", table.getvalue()),
        ("webdataset", "0.tar", shard.getvalue()),
        ("folder", "x.csv", f"image,caption\n{csv}".encode()),
        ("folder", "x.tsv", csv.replace(",", "\t", 4).encode()),
        ("flickr8k", "Flickr8k.token.txt", token.encode()),
        ("flickr8k", "captions.txt", f"image,caption\n{csv}".encode()),
        (
            "flickr30k",
            "results.csv",
            b"image_name| comment_number| comment\n" + token.replace("#", "| ").encode(),
        ),
    ]


def test_an_arrow_file_changed_anywhere(tree: Tree) -> None:
    """Of a mapped file nothing is believed: every byte in turn is another."""
    rows = pa.Table.from_pylist(
        [{"image": {"bytes": b"x" * 9, "path": None}, "caption": f"a {i}"} for i in range(4)]
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    whole = sink.getvalue()
    for place in range(0, len(whole), 3):
        changed = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        root = tree(
            {f"{place}/state.json": {"_data_files": [{"filename": "d.arrow"}]}, f"{place}/d.arrow": changed}
        )
        with contextlib.suppress(ItmfeatError):
            corpus = read("datasets", root / str(place))
            for row in range(4):
                corpus.open(row).close()


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, "1" * 5000, '{"images": ' + "9" * 5000 + "}", '{"images": NaN}', "\ufeff", "null", "\0"],
)
def test_absurd_json(tree: Tree, content: str) -> None:
    for reader, (file, _) in FORMS.items():
        with pytest.raises(DataError):
            read(reader, tree({file: content}))


def test_numbers_beyond_64_bits(tree: Tree) -> None:
    made = karpathy("0.jpg")
    made["images"][0]["sentences"][0]["sentid"] = 2**63
    with pytest.raises(DataError, match="beyond 64 bits"):
        read("flickr8k", tree({"images/0.jpg": b"", "dataset_flickr8k.json": made}))


def test_the_command_line_says_it_in_one_line(guarded: Path, tmp_path: Path) -> None:
    (guarded / "captions.jsonl").write_text(lines("../../etc/passwd"))
    fails(
        3,
        "leads out of the dataset's folder",
        "extract",
        "folder",
        "--root",
        guarded,
        "--cache",
        tmp_path / "c",
    )
    fails(3, "there is no folder", "extract", "folder", "--root", tmp_path / "absent")
    fails(2, "--name gives", "extract", "coco", "--root", guarded, "--name", "mine")
    fails(
        2, "--on-error must be stop or skip", "extract", "folder", "--root", guarded, "--on-error", "ignore"
    )
