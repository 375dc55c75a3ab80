"""The format as itmfeat/cache/README.md tells it: a reader from that page alone agrees with ours.

The reader in the first half uses h5py, numpy and hashlib and nothing of itmfeat.
"""

import hashlib
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from itmfeat.cache import FeatureFile, FeatureSpec, FeatureWriter, Gather, open_cache, write_index

PAGE = (Path(__file__).parents[2] / "itmfeat" / "cache" / "README.md").read_text()
PAYLOADS = ("features", "scales", "pooled", "boxes", "scores", "labels")
FILES = ("dataset.h5", "image/grid.h5", "text/words.h5", "detector.h5")
LENGTHS = np.array([3, 0, 4, 1, 2, 5, 1])


class Page:
    """A file as the page describes it: addresses from HDF5, everything else from raw bytes."""

    def __init__(self, path: Path) -> None:
        self.raw = bytearray(path.read_bytes())
        with h5py.File(path, "r", locking=False) as file:
            self.extents = {k: (v.id.get_offset(), v.shape, v.dtype) for k, v in file.items()}
            self.attributes = {k: file.attrs[k] for k in file.attrs}
        self.payloads = [name for name in PAYLOADS if name in self.extents and path.name != "dataset.h5"]

    def __getitem__(self, name: str) -> np.ndarray:
        start, shape, dtype = self.extents[name]
        return np.frombuffer(self.raw, dtype, int(np.prod(shape)), start or 0).reshape(shape)

    def text(self, name: str) -> str:
        return bytes(self.attributes[name]).decode()

    def strings(self, name: str) -> list[str]:
        data, offsets = self[name].tobytes(), self[f"{name}_offsets"]
        return [data[start:stop].decode() for start, stop in pairwise(offsets)]

    def digest(self) -> str:
        digest = hashlib.sha256(self.text("name").encode())
        for name in sorted(set(self.extents) - {"seal"}):
            kind = {"uint8": "|u1", "int64": "<i8"}[self[name].dtype.name]
            digest.update(f"\0{name}\0{kind}\0({len(self[name])},)\0".encode() + self[name].tobytes())
        return digest.hexdigest()

    def seal(self) -> bytes:
        raw = self.raw.copy()
        hidden = self.extents["seal"][0]
        raw[hidden : hidden + 32] = bytes(32)
        digest, position = hashlib.sha256(), 0
        places = [(self.extents[name][0], self[name].nbytes) for name in self.payloads if self[name].nbytes]
        for start, size in sorted(places):
            digest.update(raw[position:start])
            position = start + size
        digest.update(raw[position:])
        return digest.digest()

    def damaged(self) -> list[tuple[int, str]]:
        """Ranges that do not match the table, and in which payload."""
        offsets, step = self["offsets"], int(self.attributes["range_items"])
        found = []
        for r, row in enumerate(self["checksums"]):
            first, last = r * step, min((r + 1) * step, len(offsets) - 1)
            for name, stored in zip(self.payloads, row, strict=True):
                rows = slice(first, last) if name == "pooled" else slice(offsets[first], offsets[last])
                if hashlib.sha256(self[name][rows].tobytes()).digest()[:16] != stored.tobytes():
                    found.append((r, name))
        return found

    def vectors(self, item: int) -> np.ndarray:
        rows = slice(*self["offsets"][item : item + 2])
        if self.text("dtype") == "int8":
            return self["features"][rows].astype(np.float32) * self["scales"][rows, None]
        return self["features"][rows]


def detector_payloads() -> dict[str, np.ndarray]:
    rng, vectors = np.random.default_rng(2), int(LENGTHS.sum())
    features = rng.standard_normal((vectors, 6)).astype(np.float32)
    features[4] = 0
    return {
        "features": features,
        "boxes": rng.random((vectors, 4), np.float32),
        "scores": rng.random(vectors, np.float32),
        "labels": rng.integers(0, 91, vectors).astype(np.int32),
        "pooled": rng.standard_normal((len(LENGTHS), 3)).astype(np.float32),
    }


def detector_spec() -> FeatureSpec:
    return FeatureSpec(
        "image", "détecteur", "d", LENGTHS, 6, "int8", pooled_dim=3, boxed=True, labelled=True, range_items=2
    )


def write_ranges(writer: FeatureWriter, stop: int | None = None) -> None:
    for r in writer.pending[:stop]:
        items = writer.items(r)
        rows = slice(writer.offsets[items.start], writer.offsets[items.stop])
        given = detector_payloads()
        pooled = given.pop("pooled")[items.start : items.stop]
        writer.write(r, pooled=pooled, **{name: values[rows] for name, values in given.items()})


@pytest.fixture(scope="module")
def files(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy cache, with a detector's int8 file of seven images beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("format") / "toy"
    shutil.copytree(toy_cache, folder)
    with FeatureWriter(folder / "detector.h5", detector_spec()) as writer:
        write_ranges(writer)
        writer.finish()
    return folder


def test_the_index(files: Path) -> None:
    page, index = Page(files / "dataset.h5"), open_cache(files).index
    for name in ("image_id", "image_file", "caption"):
        assert page.strings(name) == getattr(index, name).tolist()
    for name in ("image_split", "caption_id", "caption_image"):
        np.testing.assert_array_equal(page[name], getattr(index, name))
    split_of_captions = page["image_split"][page["caption_image"]]
    for code, split in enumerate(("train", "val", "test")):
        sizes = (page["image_split"] == code).sum(), (split_of_captions == code).sum()
        assert index.split_sizes()[split] == sizes
    assert page.text("name") == "toy"
    assert page.digest() == page.text("digest") == index.digest


def test_the_digest_of_the_example(tmp_path: Path) -> None:
    written = write_index(
        tmp_path / "dataset.h5",
        "toy",
        {"image_id": ["a", "b"], "image_file": ["a.jpg", "é.jpg"], "caption": ["x", "", "ÿz"]},
        {
            "image_split": np.array([0, 2], np.uint8),
            "caption_id": np.array([7, 8, 9]),
            "caption_image": np.array([0, 0, 1]),
        },
    )
    page = Page(tmp_path / "dataset.h5")
    assert page.strings("caption") == ["x", "", "ÿz"]
    assert page.digest() == written
    assert re.search(r"Its digest is\s+`(\w+)`", PAGE)[1] == written


@pytest.mark.parametrize("name", FILES[1:])
def test_vectors(files: Path, name: str) -> None:
    page, found = Page(files / name), FeatureFile(files / name)
    items = range(len(page["offsets"]) - 1)
    gathered = Gather(found)(torch.arange(len(items)))
    assert page["offsets"][0] == 0
    assert page["offsets"][-1] == len(page["features"])
    for item in items:
        length = int(gathered.lengths[item])
        np.testing.assert_array_equal(page.vectors(item), gathered.wide()[item, :length].numpy())
    for payload in page.payloads:
        np.testing.assert_array_equal(page[payload], found.array(payload))
    assert page.text("backbone") == found.attributes["backbone"]


def test_features_belong_to_the_index(files: Path) -> None:
    index = Page(files / "dataset.h5")
    for name, column in (("image/grid.h5", "image_split"), ("text/words.h5", "caption_image")):
        page = Page(files / name)
        assert page.text("dataset") == index.text("digest")
        assert len(page["offsets"]) == len(index[column]) + 1


def test_quantisation(files: Path) -> None:
    page, given = Page(files / "detector.h5"), detector_payloads()
    scales = np.abs(given["features"]).max(1) / np.float32(127)
    np.testing.assert_array_equal(page["scales"], scales)
    steps = np.rint(given["features"] / np.where(scales > 0, scales, 1)[:, None])
    np.testing.assert_array_equal(page["features"], steps)
    assert not page["features"][4].any()
    assert page["features"].min() >= -127
    restored = np.concatenate([page.vectors(item) for item in range(len(LENGTHS))])
    assert (np.abs(restored - given["features"]) <= scales[:, None] * 0.501).all()
    for name in ("boxes", "scores", "labels", "pooled"):
        np.testing.assert_array_equal(page[name], given[name])


@pytest.mark.parametrize("name", FILES)
def test_layout(files: Path, name: str) -> None:
    page = Page(files / name)
    assert page.raw[8] == 2  # version of the superblock
    with h5py.File(files / name, "r") as file:
        for dataset in file.values():
            plist = dataset.id.get_create_plist()
            assert plist.get_layout() == h5py.h5d.CONTIGUOUS
            assert plist.get_nfilters() == plist.get_external_count() == 0
            assert dataset.id.get_offset() % 4096 == 0
        for key, value in file.attrs.items():
            assert isinstance(value, np.bytes_ | np.int64), key


@pytest.mark.parametrize("name", FILES)
def test_seal_and_ranges(files: Path, name: str) -> None:
    page = Page(files / name)
    assert page.seal() == page["seal"].tobytes()
    if name != "dataset.h5":
        assert page.damaged() == []
        assert FeatureFile(files / name).digest == page.seal().hex()
        assert page["checksums"].shape[:2] == (
            -(-(len(page["offsets"]) - 1) // page.attributes["range_items"]),
            len(page.payloads),
        )


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_flipped_byte_of_a_range(files: Path, tmp_path: Path, payload: str) -> None:
    page = Page(files / "detector.h5")
    item = 4  # in range 2
    row = item if payload == "pooled" else int(LENGTHS[:item].sum())
    start, shape, _ = page.extents[payload]
    page.raw[start + row * page[payload].nbytes // shape[0]] ^= 1
    assert page.damaged() == [(2, payload)]
    assert page.seal() == page["seal"].tobytes()
    (tmp_path / "a.h5").write_bytes(page.raw)
    assert FeatureFile(tmp_path / "a.h5").verify() == [range(4, 6)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["padding", "attribute", "dataset", "seal", "last byte"])
def test_a_flipped_byte_of_the_skeleton(files: Path, name: str, place: str) -> None:
    page = Page(files / name)
    column = "image_split" if name == "dataset.h5" else "checksums"
    places = {
        "padding": page.extents[column][0] + page[column].nbytes,
        "attribute": page.raw.index(page.attributes["kind"]),
        "dataset": page.extents[column][0],
        "seal": page.extents["seal"][0] + 31,
        "last byte": len(page.raw) - 1,
    }
    page.raw[places[place]] ^= 1
    assert page.seal() != page["seal"].tobytes()


def test_what_may_be_added_without_a_new_schema(files: Path, tmp_path: Path) -> None:
    path = shutil.copy(files / "detector.h5", tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["note"], file.attrs["number"] = np.bytes_("é".encode()), np.int64(3)
        file["more"] = np.arange(3)
    page = Page(path)
    assert page.seal() != page["seal"].tobytes()
    with path.open("r+b") as raw:
        raw.seek(page.extents["seal"][0])
        raw.write(page.seal())
    found = FeatureFile(path)
    assert found.attributes["note"] == "é"
    assert found.verify() == []


def test_the_journal(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "a.h5", detector_spec()) as writer:
        write_ranges(writer, 2)
    page = Page(tmp_path / "a.h5.part")
    lines = (tmp_path / "a.h5.journal").read_text().split("\n")
    first, *entries = [json.loads(line) for line in lines if line]
    assert re.fullmatch("[0-9a-f]{64}", first["identity"])
    assert [entry["range"] for entry in entries] == [0, 1]
    assert page.attributes["complete"] == 0
    assert not page["checksums"].any()
    assert not page["seal"].any()
    for entry in entries:
        rows = slice(*page["offsets"][[entry["range"] * 2, entry["range"] * 2 + 2]])
        assert list(entry["sums"]) == page.payloads
        sums = hashlib.sha256(page["scores"][rows].tobytes()).hexdigest()[:32]
        assert entry["sums"]["scores"] == sums


def row_of(section: str, name: str) -> str:
    """The line of a table of the page that has a name in its first cell."""
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line for line in body.splitlines() if re.match(rf"\|[^|]*`{name}`[^|]*\|", line)]
    assert len(rows) == 1, f"{name} stands in {len(rows)} tables of {section!r}"
    return rows[0]


@pytest.mark.parametrize("name", FILES)
def test_the_page_names_all_there_is(files: Path, name: str) -> None:
    page = Page(files / name)
    section = "dataset.h5" if name == "dataset.h5" else "Feature files"
    strings = {key.removesuffix("_offsets") for key in page.extents if key.endswith("_offsets")}
    for key, (_, _, dtype) in page.extents.items():
        kind = "strings" if key.removesuffix("_offsets") in strings else dtype.name
        assert kind in row_of(section, key).split("|")[2]
    for key, value in page.attributes.items():
        kind = "text" if isinstance(value, bytes) else "integer"
        assert kind == row_of(section, key).split("|")[2].strip()
