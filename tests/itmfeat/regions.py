"""Regions as other projects write them, with known numbers, and a cache that they are brought into."""

import base64
from pathlib import Path

import numpy as np
import pytest

from itmfeat.cache import FeatureFile, write_index

DIM = 6
COCO = {
    "391895": "val2014/COCO_val2014_000000391895.jpg",
    "522418": "val2014/COCO_val2014_000000522418.jpg",
    "9": "train2014/COCO_train2014_000000000009.jpg",
    "25": "train2014/COCO_train2014_000000000025.jpg",
}
COUNTS = [3, 1, 5, 2]


def make_cache(folder: Path, images: dict[str, str]) -> Path:
    count = len(images)
    write_index(
        folder / "dataset.h5",
        "toy",
        {"image_id": list(images), "image_file": list(images.values()), "caption": ["a"] * count},
        {
            "image_split": np.zeros(count, np.uint8),
            "caption_id": np.arange(count),
            "caption_image": np.arange(count),
        },
    )
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", COCO)


class Picture:
    """Regions with numbers that follow from the image's row: width 200, height 100, boxes inside."""

    size = (200, 100)

    def __init__(self, row: int, dim: int = DIM) -> None:
        rng = np.random.default_rng(row)
        count = COUNTS[row % len(COUNTS)]
        self.features = rng.standard_normal((count, dim)).astype(np.float32)
        self.fractions = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        self.boxes = self.fractions * np.array([*self.size, *self.size], np.float32)
        self.scores = rng.random(count).astype(np.float32)

    def line(self, name: str, form: str, **changes: object) -> str:
        width, height = self.size
        classes = np.arange(len(self.boxes))
        cells = {
            "image_id": name,
            "image_w": width,
            "image_h": height,
            "objects_id": classes,
            "objects_conf": self.scores,
            "attrs_id": classes,
            "attrs_conf": self.scores,
            "num_boxes": len(self.boxes),
            "boxes": self.boxes,
            "features": self.features,
        } | changes
        butd = "image_id image_w image_h num_boxes boxes features"
        lxmert = (
            "image_id image_h image_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features"
        )
        columns = (butd if form == "butd" else lxmert).split()
        return "\t".join(_cell(cells[column]) for column in columns)

    def arrays(self) -> dict[str, object]:
        width, height = self.size
        return {
            "x": self.features,
            "bbox": self.boxes,
            "num_bbox": len(self.boxes),
            "image_h": height,
            "image_w": width,
            "info": np.array({"objects_id": [1]}, dtype=object),  # pickled: must never be opened
        }


def _cell(value: object) -> str:
    return base64.b64encode(value.tobytes()).decode() if isinstance(value, np.ndarray) else str(value)


def write_tsv(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def tsv(path: Path, form: str = "butd", names: list[str] | None = None, end: str = "\n") -> Path:
    names = names or list(COCO)
    return write_tsv(path, [Picture(row).line(name, form) for row, name in enumerate(names)], end)


def npz(folder: Path, names: list[str] | None = None, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(names or list(COCO)):
        arrays = Picture(row).arrays() | changes
        np.savez_compressed(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def check(file: FeatureFile, rows: int, scored: bool, boxed: bool = True, exact: bool = True) -> None:
    """Every number of every image equals the source's, rounded to the type of the file."""
    assert len(file) == rows
    assert ("boxes" in file.extents) == ("scores" in file.extents) == boxed
    features = file.array()
    if "scales" in file.extents:
        features = features.astype(np.float32) * file.array("scales")[:, None]
    for row in range(rows):
        picture, mine = Picture(row), slice(file.offsets[row], file.offsets[row + 1])
        found = features[mine]
        if exact:
            np.testing.assert_array_equal(found, picture.features.astype(found.dtype))
        np.testing.assert_allclose(found, picture.features, atol=0.03)
        if boxed:
            np.testing.assert_allclose(file.array("boxes")[mine], picture.fractions, rtol=1e-6)
            scores = picture.scores if scored else np.zeros_like(picture.scores)
            np.testing.assert_array_equal(file.array("scores")[mine], scores)
    assert file.verify() == []
