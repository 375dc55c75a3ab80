"""Methods that split pairs and weigh them: against loops, and on data whose truth is known."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noisy_world import Features, auc, begun, never, scores, setting, similar, world
from test_losses import IDS, batch, sides
from torch import Tensor
from torch.nn import functional as F

import itmfeat.robust
from itmfeat.errors import UsageError
from itmfeat.losses import Similarities
from itmfeat.losses.triplet import triplet
from itmfeat.robust import METHODS, build, margin_factor, matched, parameters, scored
from itmfeat.robust.mixture import posterior
from itmfeat.robust.ncr import predicted

MINE = ("split", "ncr", "bicro", "repair", "osa")


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
