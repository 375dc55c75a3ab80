"""Intervals and tests over images and seeds: plain loops, truth tables, and rates on drawn runs."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from itmfeat import retrieval
from itmfeat.errors import DataError
from itmfeat.pairs import Pairs
from itmfeat.retrieval import Queries, Ranks, uncertainty
from itmfeat.retrieval.significance import TESTED, covariances, holm, over_seeds, parts, sign_flip
from itmfeat.retrieval.uncertainty import METRICS, bootstrap, draw, observed, percentiles


def random_queries(seed: int, images: int = 23, folds: int = 1) -> Queries:
    """Ranks up to 30 of images with one to seven captions, in any order."""
    rng = np.random.default_rng(seed)
    caption_image = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 8, images)))
    i2t, t2i = rng.integers(0, 30, images), rng.integers(0, 30, len(caption_image))
    return Queries(i2t, t2i, caption_image, np.arange(images) * folds // images)


def binary(hits: np.ndarray, captions: np.ndarray) -> Queries:
    """Ranks 0 or 99 from hits of images (N,) and of their captions (N, P)."""
    caption_image = np.repeat(np.arange(len(hits)), captions.shape[1])
    return Queries(
        np.where(hits, 0, 99), np.where(captions, 0, 99).ravel(), caption_image, np.zeros(len(hits), int)
    )


# --- the bootstrap ---


def plainly(queries: Queries, drawn: list[int]) -> list[float]:
    """The metrics of one resample, query by query: the mean over folds of the project's own results."""
    folds = []
    for fold in sorted(set(queries.fold.tolist())):
        mine = [image for image in drawn if queries.fold[image] == fold]
        captions = [c for image in mine for c in np.flatnonzero(queries.caption_image == image)]
        folds.append(
            retrieval.results(
                Ranks(torch.from_numpy(queries.i2t[mine]), torch.from_numpy(queries.t2i[captions]))
            )
        )
    ways = [
        np.mean([fold[way][key] for fold in folds])
        for way in ("i2t", "t2i")
        for key in ("r1", "r5", "r10", "medr", "meanr")
    ]
    return [*ways, sum(ways[:3]) + sum(ways[5:8])]


@pytest.mark.parametrize("folds", [1, 3])
def test_the_bootstrap_is_a_plain_loop_over_resamples(folds: int) -> None:
    models = [random_queries(seed, folds=folds) for seed in (1, 1)]
    models[1] = models[1]._replace(i2t=models[1].i2t[::-1].copy())
    drawn = draw(models[0].fold, 40, np.random.default_rng(5))
    found = bootstrap(models, 40, seed=5)
    for model, queries in enumerate(models):
        wanted = [plainly(queries, row.tolist()) for row in drawn]
        np.testing.assert_allclose(found[model], wanted, rtol=1e-12)


def test_resamples_in_blocks_are_still_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_queries(2)
    monkeypatch.setattr(uncertainty, "HELD", 7 * len(queries.t2i))
    found = bootstrap([queries], 40)[0]
    assert found.shape == (40, len(METRICS))
    assert len(np.unique(found[:, 4])) > 30


def test_each_fold_is_drawn_from_its_own() -> None:
    fold = np.repeat([0, 1, 2], [5, 4, 3])
    drawn = draw(fold, 50, np.random.default_rng(0))
    assert (fold[drawn] == fold).all()


def test_intervals_by_hand() -> None:
    # One image found, one not: a resample scores 0, 50, 50 or 100.
    queries = binary(np.array([True, False]), np.array([[True, True], [True, True]]))
    found = retrieval.intervals(queries, 2000)
    assert found["i2t"]["r1"] == [0.0, 100.0]
    assert found["i2t"]["medr"] == [1.0, 100.0]
    assert found["t2i"]["r1"] == [100.0, 100.0]
    assert found["t2i"]["meanr"] == [1.0, 1.0]
    assert found["rsum"] == [300.0, 600.0]
    assert (found["level"], found["resamples"], found["over"]) == (95, 2000, "images")


def test_the_metrics_are_those_of_the_evaluation() -> None:
    rng = torch.Generator().manual_seed(0)
    image, text = torch.randn(5000, 4, generator=rng), torch.randn(5000, 4, generator=rng)
    caption_image = torch.arange(5000)
    kept: dict[str, Ranks] = {}
    results = retrieval.evaluate(image, text, caption_image, kept=kept)
    rows = np.arange(5000)
    tensors = retrieval.to_tensors(kept, Pairs(rows, rows, rows))
    for given, own in (("auto", results), ("full", results), ("5x1k", results["5x1k"])):
        protocol, queries = retrieval.from_tensors(tensors, given)
        assert protocol in (given, "5k")
        ways = [own[way][key] for way in ("i2t", "t2i") for key in ("r1", "r5", "r10", "medr", "meanr")]
        np.testing.assert_allclose(observed(queries), [*ways, own["rsum"]], rtol=1e-9)
        np.testing.assert_allclose(parts(queries)[0].sum(0), [*ways[:3], *ways[5:8], own["rsum"]], rtol=1e-9)
    with pytest.raises(DataError, match="protocol 1k needs exactly 1000"):
        retrieval.from_tensors(tensors, "1k")
    with pytest.raises(DataError, match=r"lack '5x1k\.i2t'"):
        retrieval.from_tensors({k: v for k, v in tensors.items() if k != "5x1k.i2t"}, "5x1k")


def test_intervals_cover_the_truth_because_captions_go_with_their_image() -> None:
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(200):
        chance = rng.beta(0.5, 0.5, 150)  # easy and hard images; 50 % of all captions are found
        captions = rng.random((150, 5)) < chance[:, None]
        ends = percentiles(bootstrap([binary(captions[:, 0], captions)], 200)[0])[:, METRICS.index("t2i_r1")]
        covered += ends[0] <= 50 <= ends[1]
        rate = captions.mean()
        naive += abs(100 * rate - 50) <= 1.96 * 100 * np.sqrt(rate * (1 - rate) / captions.size)
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.85


# --- tests over images ---


@pytest.mark.parametrize("folds", [1, 3])
def test_parts_of_images(folds: int) -> None:
    queries = random_queries(3, images=60, folds=folds)
    added, moved = parts(queries)
    columns = [METRICS.index(name) for name in TESTED]
    np.testing.assert_allclose(added.sum(0), observed(queries)[columns], rtol=1e-12)
    np.testing.assert_allclose(moved.sum(0), 0, atol=1e-9)
    resampled = bootstrap([queries], 4000)[0][:, columns].std(0)
    np.testing.assert_allclose(np.sqrt(covariances(moved[None])[:, 0, 0]), resampled, rtol=0.1)


def test_sign_flips_reach_the_exact_p() -> None:
    rng = np.random.default_rng(1)
    difference = np.round(rng.normal(0.4, 1, (10, 3)), 1)
    total = abs(difference.sum(0)) - 1e-9
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = (abs(signs @ difference) >= total).mean(0)
    np.testing.assert_allclose(sign_flip(difference, 20_000), exact, atol=0.015)
    assert sign_flip(np.zeros((5, 1)), 100) == 1.0


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


# --- tests over seeds ---


def test_without_images_it_is_welch() -> None:
    values = np.random.default_rng(2).normal(size=(7, 7))
    weight = np.array([1 / 3] * 3 + [-1 / 4] * 4)
    found = over_seeds(values, np.zeros((7, 7, 7)), np.repeat([4, 9], [3, 4]), weight)
    wanted = stats.ttest_ind(values[:3], values[3:], equal_var=False)
    assert found is not None
    np.testing.assert_allclose(found.p, wanted.pvalue)
    np.testing.assert_allclose(found.freedom, wanted.df)
    np.testing.assert_allclose([found.low, found.high], wanted.confidence_interval(0.95))


def test_two_of_many_seeds_of_one_configuration() -> None:
    values = np.random.default_rng(3).normal(size=(9, 7))
    weight = np.array([1.0, -1.0] + [0.0] * 7)
    found = over_seeds(values, np.zeros((7, 9, 9)), np.zeros(9, int), weight)
    score = abs(values[0] - values[1]) / (np.sqrt(2) * values.std(0, ddof=1))
    assert found is not None
    np.testing.assert_allclose(found.p, 2 * stats.t.sf(score, 8))
    pair = over_seeds(values[:2], np.zeros((7, 2, 2)), np.zeros(2, int), weight[:2])
    assert pair is not None
    np.testing.assert_allclose(pair.p, 0.5)  # two seeds are never far apart for two seeds


def test_a_lonely_run_borrows_the_scatter_of_the_other_side() -> None:
    values = np.random.default_rng(4).normal(size=(4, 7))
    weight, group = np.array([1.0, -1 / 3, -1 / 3, -1 / 3]), np.array([0, 1, 1, 1])
    found = over_seeds(values, np.zeros((7, 4, 4)), group, weight)
    assert found is not None
    np.testing.assert_allclose(found.deviation, values[1:].std(0, ddof=1) * np.sqrt(1 + 1 / 3))
    assert over_seeds(values[:2], np.zeros((7, 2, 2)), np.array([0, 1]), np.array([1.0, -1.0])) is None


def test_seeds_never_say_more_than_the_images() -> None:
    alike = np.zeros((4, 7))  # all four runs score the same
    covariance = np.tile(np.eye(4), (7, 1, 1))
    found = over_seeds(alike, covariance, np.array([0, 0, 1, 1]), np.array([0.5, 0.5, -0.5, -0.5]))
    assert found is not None
    np.testing.assert_allclose(found.deviation, 1.0)
    np.testing.assert_allclose(found.p, 1.0)


def rejections(rng: np.random.Generator, sides: tuple[int, int], beside: int) -> tuple[bool, bool]:
    """Whether the two tests find rSum of one configuration to differ from itself: over images, over seeds."""
    runs, images = sum(sides) + 2 * beside, 200
    ease = rng.normal(0, 1.5, images) + rng.normal(0, 0.25, (runs, 1))  # of an image, and of a seed
    chance = 1 / (1 + np.exp(-ease))
    each = [parts(binary(rng.random(images) < p, rng.random((images, 2)) < p[:, None])) for p in chance]
    added, moved = (np.stack(part) for part in zip(*each, strict=True))
    weight = np.zeros(runs)
    weight[: sides[0]], weight[sides[0] : sum(sides)] = 1 / sides[0], -1 / sides[1]
    group = np.repeat([0, 1, 0, 1], [*sides, beside, beside])
    seeds = over_seeds(added.sum(1), covariances(moved), group, weight)
    assert seeds is not None
    plain = sign_flip(np.tensordot(weight, added, 1)[:, -1:], 200, int(rng.integers(1000)))
    return bool(plain[0] <= 0.05), bool(seeds.p[-1] <= 0.05)


@pytest.mark.parametrize(("sides", "beside"), [((3, 3), 0), ((1, 1), 4), ((5, 1), 0)])
def test_seeds_of_one_configuration_are_not_called_different_more_often_than_chance(
    sides: tuple[int, int], beside: int
) -> None:
    rng = np.random.default_rng(6)
    images, seeds = np.mean([rejections(rng, sides, beside) for _ in range(150)], axis=0)
    assert seeds <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)
    assert images > 0.15  # the models do differ, which the test over images is right to find


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(7)
    better = [binary(rng.random(300) < 0.6, rng.random((300, 5)) < 0.6) for _ in range(3)]
    worse = [binary(rng.random(300) < 0.5, rng.random((300, 5)) < 0.5) for _ in range(3)]
    added, moved = (np.stack(p) for p in zip(*(parts(q) for q in better + worse), strict=True))
    weight, group = np.repeat([1 / 3, -1 / 3], 3), np.repeat([0, 1], 3)
    found = over_seeds(added.sum(1), covariances(moved), group, weight)
    assert found is not None
    assert found.p[-1] < 0.02
    assert sign_flip(np.tensordot(weight, added, 1), 1000)[-1] < 0.002
