"""Soft labels of BiCro and REPAIR: consistency with trusted pairs, against loops, and found once."""

import math

import pytest
import torch
from noisy_world import CPU, Features, auc, begun, never, scores, setting, similar, world
from torch import Tensor
from torch.nn import functional as F

import itmfeat.robust
from itmfeat.robust import build
from itmfeat.robust.consistency import rank_consistency, ratio_consistency, spaced, trusted


def naive_ratios(features: Features, given: Tensor, memory: list[int]) -> Tensor:
    """Pair by pair, member by member, in float64."""
    centred = [(x - x.mean(0)).double() for x in features]

    def cosine(side: int, one: int, other: int) -> float:
        a, b = centred[side][one], centred[side][other]
        return max(float(a @ b / a.norm() / b.norm()), 0.0)

    found = []
    for pair, image in enumerate(given.tolist()):
        others = [k for k in memory if k != pair]
        v = {k: cosine(0, image, int(given[k])) for k in others}
        t = {k: cosine(1, pair, k) for k in others}
        nearest = max(others, key=lambda k: v[k]), max(others, key=lambda k: t[k])
        found.append(sum(min(v[k], t[k]) / max(v[k], t[k], 1e-12) for k in nearest) / 2)
    return torch.tensor(found)


def test_ratios_equal_loops() -> None:
    features, given, _ = world(images=20)
    memory = torch.tensor([50, 3, 17, 4, 30, 41])  # 3 and 4 are of one image
    found = ratio_consistency(features, given, memory, CPU)
    torch.testing.assert_close(found, naive_ratios(features, given, memory.tolist()).float())


def test_ranks_equal_scipy() -> None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    features, given, _ = world(images=20, wrong=0)
    memory = torch.arange(0, 60, 3)  # of different images, so that no distances are equal
    found = rank_consistency(features, given, memory, CPU)
    image, text = (F.normalize((x - x.mean(0)).double(), dim=1) for x in features)
    for pair in range(60):
        apart = (1 - image[given[pair]] @ image[given[memory]].T, 1 - text[pair] @ text[memory].T)
        assert float(found[pair]) == pytest.approx(spearmanr(*apart).statistic, abs=1e-5)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of one image in two blocks, in any order."""
    features, given, _ = world(images=30)
    memory = torch.arange(0, 90, 7)
    whole = [f(features, given, memory, CPU) for f in (ratio_consistency, rank_consistency)]
    monkeypatch.setattr(itmfeat.robust.consistency, "BLOCK", 7)
    parts = [f(features, given, memory, CPU) for f in (ratio_consistency, rank_consistency)]
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("name", ["bicro", "repair"])
@pytest.mark.parametrize("wrong", [0.4, 0.6])
def test_trusted_pairs_tell_clean_from_noisy(name: str, wrong: float) -> None:
    """The labels of pairs that are not trusted themselves, from features alone."""
    features, given, true = world(wrong=wrong)
    clean = given == true
    found = scores(clean)
    method = begun(build(name, setting(features, given)), lambda: found)
    labels = method.labels(similar(), torch.arange(len(given)), 3)
    assert labels is not None
    rest = torch.ones_like(clean)
    rest[trusted(found.softmax[0], 0.1)] = False
    assert auc(labels.soft[0][rest], clean[rest]) > 0.8
    assert labels.soft[0][~rest].min() == 1
    assert 0 <= labels.soft.min() < labels.soft.max() == 1


def test_bicro_forgets_labels_up_to_the_floor_and_splits_by_it() -> None:
    features, given, true = world()
    method = begun(build("bicro", setting(features, given), floor=0.6), lambda: scores(given == true))
    soft = method.state()["soft"]
    assert ((soft == 0) | (soft > 0.6)).all()
    split = method.split()
    assert split is not None
    assert torch.equal(split, soft.unsqueeze(0) > 0)


def test_the_memory_is_spread_over_the_trusted_pairs() -> None:
    loss = torch.tensor([0.5, 0.1, math.inf, 0.3, 0.2, math.nan, 0.4, 0.9, 0.8, 0.7])
    places = trusted(loss, 0.5)
    assert places.tolist() == [1, 4, 3, 6, 0]
    assert spaced(places, 3).tolist() == [1, 3, 0]
    assert spaced(places, 9).tolist() == places.tolist()
    assert len(trusted(loss, 1e-9)) == 2


@pytest.mark.parametrize("name", ["bicro", "repair"])
def test_labels_are_found_once_and_survive_a_restart(name: str) -> None:
    features, given, true = world()
    method = begun(build(name, setting(features, given)), lambda: scores(given == true))
    again = build(name, setting(features, given))
    shapes = {key: (value.shape, value.dtype) for key, value in again.state().items()}
    assert shapes == {key: (value.shape, value.dtype) for key, value in method.state().items()}
    for key, value in again.state().items():
        value.copy_(method.state()[key])
    again.begin(4, never)
    captions = torch.tensor([5, 0, 9])
    both = [m.labels(similar(2), captions, 4) for m in (method, again)]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].soft.shape == (2, 3)
    assert torch.equal(both[0].soft, both[1].soft)
    assert torch.equal(both[0].soft[0], method.state()["soft"][captions])


@pytest.mark.parametrize("name", ["bicro", "repair"])
def test_nothing_to_judge_by_leaves_all_pairs_in(name: str) -> None:
    """A net that diverged; features that say nothing."""
    features, given, true = world(images=20)
    lost = scores(given == true)
    lost.softmax[0, 4] = math.nan
    blank = tuple(torch.ones_like(x) for x in features)
    ones = [
        begun(build(name, setting(features, given)), lambda: lost),
        begun(build(name, setting((blank[0], blank[1]), given)), lambda: scores(given == true)),
    ]
    for method in ones:
        assert (method.state()["soft"] == 1).all()
