"""Methods that split pairs and give soft labels: against loops, and on data whose truth is known."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_losses import IDS, batch, sides
from torch import Tensor
from torch.nn import functional as F

import itmfeat.robust
from itmfeat.errors import UsageError
from itmfeat.losses import Similarities
from itmfeat.losses.triplet import triplet
from itmfeat.robust import (
    METHODS,
    Method,
    Scores,
    Setting,
    build,
    margin_factor,
    matched,
    parameters,
    scored,
)
from itmfeat.robust.consistency import rank_consistency, ratio_consistency, spaced, trusted
from itmfeat.robust.mixture import posterior
from itmfeat.robust.ncr import predicted

MINE = ("split", "ncr", "bicro", "repair", "osa")
CPU = torch.device("cpu")
Features = tuple[Tensor, Tensor]


def world(
    images: int = 300, wrong: float = 0.4, dims: tuple[int, int] = (48, 32)
) -> tuple[Features, Tensor, Tensor]:
    """Features of one latent seen by two unlike random maps; given and true images of the captions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    true = torch.arange(images).repeat_interleave(3)
    topic = normal(12, 10)[torch.randint(12, (images,), generator=generator)] + 0.6 * normal(images, 10)
    image = topic @ normal(10, dims[0]) + 0.5 * normal(images, dims[0]) + 3  # a mean that all share
    text = (topic[true] + 0.3 * normal(len(true), 10)) @ normal(10, dims[1]) - 2
    given = true.clone()
    moved = torch.randperm(len(true), generator=generator)[: round(wrong * len(true))]
    given[moved] = true[moved.roll(1)]
    return (image, text), given, true


def setting(features: Features, given: Tensor, epochs: int = 10) -> Setting:
    return Setting(given, epochs, CPU, lambda: features)


def scores(clean: Tensor, nets: int = 1, overlap: float = 0.3) -> Scores:
    """What nets with some skill would find: noisy pairs have larger losses, mostly; nets differ."""
    noise = torch.randn(nets, len(clean), generator=torch.Generator().manual_seed(1))
    loss = torch.where(clean, 0.3, 1.3) + overlap * noise
    return Scores(loss / 3, loss, loss < 0.8)


def auc(label: Tensor, clean: Tensor) -> float:
    """Probability that a clean pair has the larger label than a noisy one."""
    above = label[clean].unsqueeze(1) - label[~clean]
    return float((above > 0).float().mean() + (above == 0).float().mean() / 2)


def never() -> Scores:
    raise AssertionError("this epoch needs no scores")


def similar(nets: int | None = 1, ids: Tensor = IDS) -> Similarities:
    s = batch(runs=nets, ids=ids)
    return Similarities(s.i2t.detach(), s.t2i.detach(), s.positive)


def begun(method: Method, found: Callable[[], Scores], until: int = 3) -> Method:
    """Through the warm-up and into the first epoch after it."""
    for epoch in range(until + 1):
        method.begin(epoch, never if epoch < until else found)
    return method


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


def test_ncr_predicts_as_loops_do() -> None:
    s = similar(None)
    cost = []
    for i in range(len(IDS)):
        negatives = sides(s, i)[1]
        both = [
            max(0.2 + float(m[i, n]) - float(s.i2t[i, i]), 0.0) for m in (s.i2t, s.t2i) for n in negatives
        ]
        cost.append(sum(both) / len(negatives) / 2)
    left = [min(max(0.2 - c, 0.0), 0.2) for c in cost]
    best = max(left)  # a tenth of seven pairs is one
    expected = torch.tensor([min(x / best, 1.0) if best else 0.0 for x in left], dtype=torch.float64)
    torch.testing.assert_close(predicted(s), expected)
    assert predicted(similar(None, torch.tensor([5, 5, 5]))).tolist() == [1.0] * 3


def test_ncr_lets_each_net_split_for_the_other() -> None:
    features, given, true = world()
    found = scores(given == true, nets=2)
    method = begun(build("ncr", setting(features, given)), lambda: found)
    split = method.split()
    assert method.nets == 2
    assert split is not None
    assert torch.equal(split[0], posterior(found.hinge[1]) > 0.5)
    assert torch.equal(split[1], posterior(found.hinge[0]) > 0.5)
    assert not torch.equal(split[0], split[1])


def test_ncr_labels_equal_loops_and_noisy_pairs_join_late() -> None:
    features, given, true = world()
    found = scores(given == true, nets=2, overlap=0.45)
    method = begun(build("ncr", setting(features, given)), lambda: found)
    s, captions = similar(2), torch.tensor([4, 19, 3, 100, 42, 77, 250])
    w = [posterior(found.hinge[1])[captions], posterior(found.hinge[0])[captions]]
    p = predicted(s)
    early, late = method.labels(s, captions, 4), method.labels(s, captions, 5)
    assert early is not None
    assert late is not None
    assert early.weight is not None
    assert late.weight is None
    kinds = set()
    for net in range(2):
        for i in range(7):
            clean = bool(w[net][i] > 0.5)
            mixed = w[net][i] + (1 - w[net][i]) * p[net, i]
            expected = mixed if clean else (p[0, i] + p[1, i]) / 2
            assert float(early.soft[net, i]) == pytest.approx(float(expected))
            assert float(early.weight[net, i]) == clean
            kinds.add(clean)
    assert kinds == {True, False}
    assert torch.equal(early.soft, late.soft)
    assert ((early.soft >= 0) & (early.soft <= 1)).all()


def test_soft_margins_run_from_none_to_the_whole() -> None:
    soft = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    factor = margin_factor(soft)
    torch.testing.assert_close(factor, torch.tensor([0, (10**0.25 - 1) / 9, 1], dtype=torch.float64))
    s = similar(None, torch.tensor([3, 1, 2]))
    expected = 0.0
    for m in (s.i2t, s.t2i):  # the factor of query i, in both directions
        for i in range(3):
            expected += sum(max(0.2 * factor[i] + m[i, n] - m[i, i], 0.0) for n in range(3) if n != i) / 3
    found = triplet(Similarities(s.i2t, s.t2i, s.positive, margin_factor=factor), hardest=False)
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize("given_parameters", [{}, {"mixture": "bmm", "score": "hinge", "soft": False}])
def test_split_finds_the_clean_pairs_anew_in_each_epoch(given_parameters: dict[str, Any]) -> None:
    features, given, true = world()
    clean = given == true
    method = begun(build("split", setting(features, given), **given_parameters), lambda: scores(clean))
    split = method.split()
    captions = torch.arange(50)
    labels = method.labels(similar(), captions, 3)
    assert split is not None
    assert labels is not None
    assert (split[0] == clean).float().mean() > 0.9
    if given_parameters:
        assert torch.equal(labels.soft, split[:, captions].float())
    else:
        assert torch.equal(labels.soft[0], posterior(scores(clean).softmax[0])[captions])
    method.begin(4, lambda: scores(~clean))
    later = method.split()
    assert later is not None
    assert (later[0] == ~clean).float().mean() > 0.9


def joint(wrong: float = 0.4) -> tuple[Features, Tensor, Tensor]:
    """Features in one space, as of CLIP: images and captions in two cones, and what they show."""
    (image, _), given, true = world(wrong=wrong)
    noise = torch.randn(len(true), image.shape[1], generator=torch.Generator().manual_seed(2))
    image = image - 3
    return (image + 2, image[true] + 2 * noise - 1), given, true


@pytest.mark.parametrize("wrong", [0.0, 0.4, 0.8])
def test_osa_weighs_pairs_in_a_joint_space(wrong: float) -> None:
    features, given, true = joint(wrong)
    method = build("osa", setting(features, given))
    labels = method.labels(similar(), torch.arange(len(given)), 0)
    assert labels is not None
    assert 0 <= labels.soft.min() < 0.5 < labels.soft.max() == 1
    assert method.state() == {}
    if wrong:
        assert auc(labels.soft[0], given == true) > 0.8


def test_osa_shapes() -> None:
    """The published weight is 0 for the most similar pair; the rising one falls nowhere."""
    features, given, _ = joint()
    weights = {}
    for shape in ("peak", "rising"):
        labels = build("osa", setting(features, given), shape=shape).labels(
            similar(), torch.arange(len(given)), 0
        )
        assert labels is not None
        weights[shape] = labels.soft[0]
    shuffled = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(0))]
    image, text = (F.normalize(x.double(), dim=1) for x in features)
    wrong = np.mean([float(image[j] @ text[i]) for i, j in enumerate(shuffled.tolist()) if j != given[i]])
    above = torch.tensor([max(float(image[j] @ text[i]) - wrong, 0.0) for i, j in enumerate(given.tolist())])
    x = above / above.max()
    torch.testing.assert_close(weights["peak"], (4 * x**2 * (1 - x**2)).float(), rtol=1e-3, atol=1e-4)
    assert weights["peak"][x.argmax()] == 0
    assert weights["rising"][x.argsort()].diff().min() > -1e-4
    assert (weights["rising"][x > 0.708] == 1).all()
    small = x < 0.7
    torch.testing.assert_close(weights["rising"][small], weights["peak"][small])


def test_osa_needs_a_joint_space_before_training() -> None:
    features, given, _ = world(wrong=0.4)
    message = "images have 48 dimensions and texts 32; use bicro or repair"
    with pytest.raises(UsageError, match=message):
        build("osa", setting(features, given))
    features, given, _ = world(wrong=0, dims=(512, 512))  # right pairs, but two unrelated spaces
    with pytest.raises(UsageError, match="share no space; use bicro or repair"):
        build("osa", setting(features, given))
    features, _, true = joint(0.0)
    for image in (torch.zeros_like(true), (true + 1) % 300):  # one image only; all pairs wrong
        with pytest.raises(UsageError, match="share no space"):
            build("osa", setting(features, image))


@pytest.mark.parametrize("name", [name for name in MINE if name != "osa"])
@pytest.mark.parametrize("warm", [0, 2])
def test_the_warm_up_knows_no_labels(name: str, warm: int) -> None:
    features, given, true = world(images=40)
    method = build(name, setting(features, given), warm=warm)
    s, captions = similar(method.nets), torch.arange(7)
    for epoch in range(4):
        ready = epoch >= warm
        found = scores(given == true, method.nets)
        method.begin(epoch, (lambda found=found: found) if ready else never)
        assert method.warm(epoch) is not ready
        labels = method.labels(s, captions, epoch)
        assert (labels is not None) is ready
        if labels is not None:
            assert labels.soft.shape == (method.nets, 7)
            assert ((labels.soft >= 0) & (labels.soft <= 1)).all()


@pytest.mark.parametrize("name", ["split", "ncr"])
def test_a_net_that_diverged_takes_all_pairs_for_clean(name: str) -> None:
    features, given, true = world(images=40)
    found = scores(given == true, 2)
    found.softmax[1], found.hinge[1] = math.nan, math.nan
    method = begun(build(name, setting(features, given)), lambda: found)
    split = method.split()
    assert split is not None
    diverged, other = (0, 1) if name == "ncr" else (1, 0)  # NCR's nets split for each other
    assert split[diverged].all()
    assert not split[other].all()


def test_bad_parameters() -> None:
    features, given, _ = world(images=20)
    with pytest.raises(UsageError, match="unknown parameter of bicro 'ancors': did you mean 'anchors'"):
        build("bicro", setting(features, given), ancors=0.1)
    with pytest.raises(UsageError, match=r"unknown robust\.shape of osa 'peek': did you mean 'peak'"):
        build("osa", setting(features, given), shape="peek")
    for bad in ({"anchors": -0.1}, {"anchors": 1.5}, {"memory": 1}):
        with pytest.raises(UsageError, match=rf"robust\.{next(iter(bad))}"):
            build("repair", setting(features, given), **bad)
    assert parameters("ncr") == {"warm": 3, "threshold": 0.5, "noisy_from": 0.5, "use": "auto"}
    assert parameters("osa") == {"shape": "rising"}


def test_the_readme_has_every_method() -> None:
    text = (Path(itmfeat.robust.__file__).parent / "README.md").read_text()
    assert set(METHODS) == set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("ids", [IDS, torch.tensor([5, 5, 5])])
def test_pairs_are_scored_as_loops_do(ids: Tensor) -> None:
    s = batch(ids=ids)
    s = Similarities(s.i2t.detach(), s.t2i.detach(), s.positive)
    found, match = scored(s), matched(s)
    for i in range(len(ids)):
        negatives = sides(s, i)[1]
        rows = s.i2t[i], s.t2i[i]
        hinges = [max(0.0, 0.2 + float(row[n] - s.i2t[i, i])) for row in rows for n in negatives]
        assert float(found.hinge[i]) == pytest.approx(sum(hinges) / max(1, len(negatives)))
        p = [float((20 * row[[i, *negatives]]).softmax(0)[0]) for row in rows]
        assert float(found.softmax[i]) == pytest.approx(-math.log(p[0] * p[1]) / 2)
        assert float(match[i]) == pytest.approx(math.sqrt(p[0] * p[1]))
        evidence = [sum(math.exp(float(row[c]) / 0.1) for row in rows) for c in (i, *negatives)]
        assert bool(found.first[i]) == all(evidence[0] > other for other in evidence[1:])


def test_scores_of_batches_fill_one_table() -> None:
    part = scored(batch(runs=2))
    table = part.blank(20)
    captions = torch.stack([torch.randperm(20)[: len(IDS)] for _ in range(2)])
    table.put(captions, part)
    for net in range(2):
        assert torch.equal(table.of([net]).softmax[0, captions[net]], part.softmax[net])
    assert int((table.hinge != 0).sum()) <= 2 * len(IDS)
