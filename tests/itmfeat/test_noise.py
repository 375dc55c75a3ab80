"""Noise protocols against the published index files and their own promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from itmfeat.cache import open_cache
from itmfeat.errors import DataError, UsageError
from itmfeat.loader import Means, Stream
from itmfeat.noise import (
    PROTOCOLS,
    cluster,
    clusters,
    corrupt,
    decl,
    derangement,
    described,
    facts,
    fixed_points,
    from_file,
    kind_of,
    ncr,
    replacement,
    seed_of,
)
from itmfeat.noise.inspection import assumed, inspect
from itmfeat.pairs import split_pairs

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


UNEVEN = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 8, 50))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.9])
def test_derangement_moves_every_drawn_caption(ratio: float, seed: int) -> None:
    given = derangement(UNEVEN, ratio, seed)
    chosen = int(ratio * len(UNEVEN))
    assert (given != UNEVEN).sum() == chosen
    assert np.array_equal(np.bincount(given), np.bincount(UNEVEN))
    found = described(given, UNEVEN)
    assert fixed_points(found, UNEVEN, "derangement", ratio, seed) == {"chosen": chosen, "fixed_points": 0}
    moved_by_ncr = ncr(UNEVEN, ratio, seed) != UNEVEN
    assert (given != UNEVEN)[moved_by_ncr].all(), "the same captions are drawn"


def test_derangement_of_the_tightest_case_and_of_none() -> None:
    tight = np.array([0, 0, 0, 1, 2, 3, 3])  # half of the six drawn ones may belong to image 0
    for seed in range(100):
        assert (derangement(tight, 0.9, seed) != tight).sum() == 6
    assert np.array_equal(derangement(tight, 0.1, 0), tight)
    with pytest.raises(DataError, match="owns most of the 1 captions"):
        derangement(tight, 0.2, 0)


def test_replacement_draws_any_other_image() -> None:
    given = replacement(UNEVEN, 0.5, 0)
    assert (given != UNEVEN).sum() == len(UNEVEN) // 2
    assert given.min() >= 0
    assert given.max() <= UNEVEN.max()
    true = np.arange(60_000) % 3
    counts = np.bincount(replacement(true, 0.99, 0)[true == 1], minlength=3)
    assert abs(counts[0] - counts[2]) < 4 * np.sqrt(20_000 / 2)
    with pytest.raises(DataError, match="no other image"):
        replacement(np.zeros(4, np.int64), 0.5, 0)
    assert (replacement(np.zeros(4, np.int64), 0.0, 0) == 0).all()


def test_images_without_a_caption_train_on(toy_cache: Path) -> None:
    cache = open_cache(toy_cache)
    pairs = split_pairs(cache.index, "train", 5)
    given = replacement(pairs.caption_image, 0.9, 1)
    assert facts(described(given, pairs.caption_image), pairs.caption_image)["same_counts"] is False
    given = np.where(given == 3, 4, given)  # image 3 surely has none
    sources = (
        Means(cache.open("image"), pairs.images),
        Means(cache.open("text"), pairs.captions),
    )
    rows = (pairs.images, pairs.captions)
    seen = list(Stream(sources, rows, [given], 20).epoch(0))
    ids = torch.cat([batch.image_ids for batch in seen]).numpy()
    captions = torch.cat([batch.captions[0] for batch in seen]).numpy()
    assert 3 not in ids
    assert np.array_equal(np.sort(captions), np.arange(200))
    assert np.array_equal(ids, given[captions])
    with pytest.raises(UsageError, match="cannot be stacked"):
        Stream(sources, rows, [given, pairs.caption_image], 20)


def test_cluster_shuffles_inside_clusters() -> None:
    true = np.arange(1000) // 5
    labels = np.random.default_rng(1).integers(0, 7, 200)
    given = cluster(true, 0.6, 2, labels)
    assert (given != true).sum() == 600
    assert np.array_equal(labels[given], labels[true])
    assert np.array_equal(np.bincount(given), np.bincount(true))
    alone = cluster(true, 0.6, 2, np.arange(200))
    assert np.array_equal(alone, true), "an image alone in its cluster keeps its captions"


def test_clusters_find_what_is_apart() -> None:
    rng = np.random.default_rng(0)
    which = rng.integers(0, 4, 300)
    features = 5 + 8 * np.eye(4, 16)[which] + 0.3 * rng.standard_normal((300, 16))
    found = clusters(features, 12, seed=3)
    assert all(len(set(which[found == label])) == 1 for label in set(found))
    assert np.array_equal(found, clusters(features, 12, seed=3))
    assert len(set(clusters(features.astype(np.float16)))) <= 17
    assert set(clusters(np.ones((9, 2)), 3)) <= {0, 1, 2}
    for count in (0, 301):
        with pytest.raises(UsageError, match=r"1\.\.300"):
            clusters(features, count)


def test_kinds_by_content() -> None:
    true = np.arange(500) // 5
    assert kind_of(ncr(true, 0.4, 0), true) == "caption-level"
    assert kind_of(decl(true, 0.4, 0), true) == "image-level"
    assert kind_of(true, true) == "caption-level"
    single = np.arange(10)
    assert kind_of(np.roll(single, 1), single) == "caption-level"
    mixed = np.random.default_rng(0).permutation(true)  # captions need not lie in image order
    assert kind_of(decl(mixed, 0.4, 0), mixed) == "image-level"


def test_facts_of_a_small_case() -> None:
    true = np.array([0, 0, 1, 1, 2, 2])
    found = facts(described(np.array([0, 0, 0, 1, 0, 0]), true), true)
    assert (found["moved"], found["effective"]) == (3, 0.5)
    assert (found["images_clean"], found["images_noisy"]) == (1 / 3, 1 / 3)
    assert (found["images_without_caption"], found["same_counts"]) == (1, False)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fixed_points_add_up(protocol: str) -> None:
    true = np.arange(200) // 5
    found = corrupt(true, protocol, 0.5, 4)
    drawn = fixed_points(found, true, protocol, 0.5, 4)
    assert drawn["chosen"] == 100
    assert drawn["chosen"] - drawn["fixed_points"] == (found.caption_image != true).sum()


def test_inspect_knows_a_published_file(tmp_path: Path) -> None:
    np.save(tmp_path / "any.npy", ncr(FLICKR30K, 0.2, 96))
    found = inspect(tmp_path / "any.npy")
    assert found["published"] == "f30k_precomp_0.2.npy"
    assert (found["seed"], found["chosen"], found["fixed_points"]) == (96, 29_000, 1)
    assert found["blob"] == "d08bb3f183be66c44e76b1df512c8b991e0a0e7e"
    assert found["images_clean"] == pytest.approx(0.323, abs=0.003)


def test_inspect_tells_the_forms_apart(tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    images = np.random.RandomState(0).permutation(29_000)
    np.save(path, images)
    short = inspect(path)
    assert (short["form"], short["kind"]) == ("one image an image", "image-level")
    np.save(path, np.repeat(images, 5))
    long = inspect(path)
    assert (long["form"], long["kind"]) == ("one image a caption", "image-level")
    assert short["digest"] == long["digest"], "the same noise, whatever its form"
    assert short["published"] is None


def test_lengths_that_say_enough_and_those_that_do_not(tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    np.save(path, np.arange(30))
    assert np.array_equal(assumed(path, 30), np.arange(150) // 5)
    assert np.array_equal(assumed(path, 10), np.arange(30) // 3)
    with pytest.raises(DataError, match="do not divide among 7"):
        assumed(path, 7)
    with pytest.raises(DataError, match="pass --cache or --images"):
        assumed(path)
    np.save(path, np.arange(113_287))
    assert len(assumed(path)) == 566_435


def test_seeds_by_number_and_by_name() -> None:
    assert seed_of(7, "flickr8k", "decl", 0.3) == seed_of("7", "coco", "ncr", 0.2) == 7
    assert seed_of("published", "coco", "ncr", 0.5) == 43
    assert seed_of("published", "flickr30k", "ncr", 0.5) == 34
    assert seed_of("published", "coco", "ncr", 0.0) == 96
    for dataset, protocol, ratio in (
        ("coco", "ncr", 0.3),
        ("flickr8k", "ncr", 0.2),
        ("flickr8k", "ncr", 0.0),
        ("coco", "decl", 0.2),
    ):
        with pytest.raises(UsageError, match=r"flickr30k at 0\.2, 0\.4, 0\.5, 0\.6; coco at"):
            seed_of("published", dataset, protocol, ratio)
    with pytest.raises(UsageError, match="whole number or 'published'"):
        seed_of("some", "coco", "ncr", 0.2)
    for seed in (-1, 2**32):
        with pytest.raises(UsageError, match="noise seed must lie"):
            corrupt(FLICKR30K, "ncr", 0.2, seed)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\)"):
        corrupt(FLICKR30K, "ncr", ratio, 0)


def test_cluster_needs_a_file() -> None:
    with pytest.raises(UsageError, match="noise make --protocol cluster"):
        corrupt(FLICKR30K, "cluster", 0.2, 0)


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
        (np.full(50, 2**63, np.uint64), "beyond"),
        (np.zeros(50, bool), "bool"),
    ],
)
def test_bad_files(tmp_path: Path, stored: np.ndarray, message: str) -> None:
    np.save(tmp_path / "index.npy", stored)
    with pytest.raises(DataError, match=message):
        from_file(tmp_path / "index.npy", np.arange(50) // 5)


def test_no_npy_file(tmp_path: Path) -> None:
    (tmp_path / "index.npy").write_text("no")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "many.npz", np.arange(50) // 5)
    np.save(tmp_path / "whole.npy", np.arange(50) // 5)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-9])
    for name in ("index.npy", "missing.npy", "empty.npy", "many.npz", "cut.npy", "."):
        with pytest.raises(DataError, match="no readable"):
            from_file(tmp_path / name, np.arange(50) // 5)
