"""Runs on a dataset whose captions are hostile, and a report of them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_features
from PIL import Image

from itmfeat.cache import FeatureSpec, write_index
from itmfeat.report import collect, tabulate
from itmfeat.report.html import page
from itmfeat.report.table import Table
from itmfeat.sweeps import sweep

IMAGES, TEST = 44, 14
HOSTILE = "<script>alert(1)</script> & <!-- </script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a dataset with a picture for each image but the last."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    for row in range(IMAGES - 1):
        Image.new("RGB", (300, 200), (5 * row, 80, 160)).save(root / "images" / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses x two noise ratios x two seeds, trained on a cache whose captions are hostile."""
    folder, rng = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    owner = np.repeat(np.arange(IMAGES), 2)
    digest = write_index(
        folder / "cache" / "dataset.h5",
        "hostile",
        {
            "image_id": [str(row) for row in range(IMAGES)],
            "image_file": [f"images/{row}.png" for row in range(IMAGES)],
            "caption": [f"{HOSTILE} number {row}" for row in range(2 * IMAGES)],
        },
        {
            "image_split": np.repeat([0, 1, 2], [20, 10, TEST]).astype(np.uint8),
            "caption_id": np.arange(2 * IMAGES),
            "caption_image": owner,
        },
    )
    code = rng.standard_normal((IMAGES, 6))
    for kind, name, each in (("image", "grid", np.arange(IMAGES)), ("text", "words", owner)):
        vectors = code[each] + 0.4 * rng.standard_normal((len(each), 6))
        spec = FeatureSpec(kind, name, digest, np.ones(len(each), np.int64), 6)
        write_features(folder / "cache" / kind / f"{name}.h5", spec, vectors)
    grid = {"loss": ["triplet", "snll"], "noise": [0, 0.4], "seed": [0, 1]}
    sweep(
        **grid, **{"head.dim": 64, "epochs": 3, "batch_size": 8}, cache=folder / "cache", runs=folder / "runs"
    )
    return folder / "runs"


@pytest.fixture(scope="module")
def tables(runs: Path) -> list[Table]:
    return tabulate(collect([runs]).runs)


@pytest.fixture(scope="module")
def report(tables: list[Table], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(tables, images=pictures, queries=12), encoding="utf-8")
    return file


def stored(text: str, name: str) -> Any:
    """Data that a page holds for its script."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text)
    assert found
    return json.loads(found[1])
