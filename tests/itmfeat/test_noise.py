"""Noise protocols against the published index files and their own promises."""

from pathlib import Path

import numpy as np
import pytest

from itmfeat.errors import DataError, UsageError
from itmfeat.noise import corrupt, decl, from_file, ncr

FLICKR30K, COCO = np.arange(145_000) // 5, np.arange(566_435) // 5

# Index files in circulation: (captions, ratio, seed) -> start of the SHA-256, captions truly moved.
PUBLISHED = [
    (FLICKR30K, 0.2, 96, "4d367b5592645950", 28_999),
    (FLICKR30K, 0.4, 96, "8152f92aa51c5afc", 58_000),
    (FLICKR30K, 0.5, 34, "9db257937b57de99", 72_497),
    (FLICKR30K, 0.6, 96, "bcf16a227419634d", 86_996),
    (COCO, 0.2, 16, "a0ca6052556963d6", 113_286),
    (COCO, 0.4, 96, "9f674ad089f7d375", 226_572),
    (COCO, 0.5, 43, "ba9658be353a59e3", 283_214),
    (COCO, 0.6, 96, "7be1266823f938e4", 339_856),
]


@pytest.mark.parametrize(("true", "ratio", "seed", "digest", "moved"), PUBLISHED)
def test_ncr_regenerates_the_published_files(
    true: np.ndarray, ratio: float, seed: int, digest: str, moved: int
) -> None:
    found = corrupt(true, "ncr", ratio, seed)
    assert found.digest.startswith(digest)
    assert round(found.effective * len(true)) == moved


def test_ncr_keeps_the_captions_of_an_image_as_many() -> None:
    true = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 8, 50))
    given = ncr(true, 0.6, 3)
    assert np.array_equal(np.bincount(given), np.bincount(true))
    assert np.array_equal(ncr(true, 0.0, 3), true)


def test_decl_moves_whole_images() -> None:
    true = np.arange(500) // 5
    given = decl(true, 0.4, 1).reshape(100, 5)
    assert (given == given[:, :1]).all()
    assert 36 <= (given[:, 0] != np.arange(100)).sum() <= 40


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\)"):
        corrupt(FLICKR30K, "ncr", ratio, 0)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'ncr'"):
        corrupt(FLICKR30K, "ncrr", 0.2, 0)


def test_files_of_both_shapes(tmp_path: Path) -> None:
    true = np.arange(50) // 5
    path = tmp_path / "index.npy"
    np.save(path, ncr(true, 0.5, 0))
    assert np.array_equal(from_file(path, true).caption_image, ncr(true, 0.5, 0))
    images = np.random.default_rng(0).permutation(10)
    np.save(path, images)
    assert np.array_equal(from_file(path, true).caption_image, np.repeat(images, 5))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.arange(49), "shape"),
        (np.full(50, 10), "outside 0..9"),
        (np.full(50, -1), "outside"),
        (np.zeros(50), "float64"),
        (np.zeros((10, 5), int), "shape"),
    ],
)
def test_bad_files(tmp_path: Path, stored: np.ndarray, message: str) -> None:
    np.save(tmp_path / "index.npy", stored)
    with pytest.raises(DataError, match=message):
        from_file(tmp_path / "index.npy", np.arange(50) // 5)


def test_no_npy_file(tmp_path: Path) -> None:
    (tmp_path / "index.npy").write_text("no")
    for name in ("index.npy", "missing.npy"):
        with pytest.raises(DataError, match="no readable"):
            from_file(tmp_path / name, np.arange(50) // 5)
