"""Losses whose confidence is a label of the equation: CRCL, DECL, CREAM."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_losses import (
    BATCHES,
    Case,
    Row,
    assert_equal_in_value_and_gradient,
    batch,
    probabilities,
    sides,
    sure,
)
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from itmfeat.losses import Similarities, build
from itmfeat.losses.crcl import crcl
from itmfeat.losses.cream import cream
from itmfeat.losses.decl import _above_uniform, decl
from itmfeat.losses.infonce import infonce
from itmfeat.losses.rcl import rcl_tan

SOFT = [("crcl", {}), ("decl", {}), ("decl", {"kappa": 3.0}), ("cream", {}), ("cream", {"floor": 0.0})]


def by_row(cost: Row) -> Callable[[Similarities], Tensor]:
    """1/B sum over both directions and queries of cost(s, row of similarities, query)."""

    def total(s: Similarities) -> Tensor:
        costs = [cost(s, matrix[i], i) for matrix in (s.i2t, s.t2i) for i in range(len(matrix))]
        return sum((torch.as_tensor(c) for c in costs), torch.zeros((), dtype=torch.float64)) / len(s.i2t)

    return total


def naive_crcl(s: Similarities, row: Tensor, query: int, scale: float = 20.0, weight: float = 5.0) -> Tensor:
    p, y = probabilities(s, row, query, scale), sure(s, query)
    negative = sum((p[n].tan() for n in sides(s, query)[1]), torch.zeros(()))
    every = sum((p[k].tan() for k in p), torch.zeros(()))
    return y * -p[query].log() + weight * negative / every ** (1 - y)


def naive_decl(
    s: Similarities, row: Tensor, query: int, n: int = 5, tau: float = 0.1, kappa: float | None = None
) -> Tensor | float:
    negatives, y = sides(s, query)[1], sure(s, query)
    if not negatives:
        return 0.0
    view = row if kappa is None else (kappa * row).tanh()
    candidates, labels = [query, *negatives], [y] + [0.0] * len(negatives)
    alpha = {c: (view[c] / tau).exp() + 1 for c in candidates}
    strength = sum(alpha.values())
    cost = torch.zeros((), dtype=torch.float64)
    for c, label in zip(candidates, labels, strict=True):
        p = alpha[c] / strength
        cost = cost + (label - p) ** 2 + p * (1 - p) / (strength + 1)
    left = torch.stack([label + (1 - label) * alpha[c] for c, label in zip(candidates, labels, strict=True)])
    cost = cost + 0.1 * kl_divergence(Dirichlet(left), Dirichlet(torch.ones_like(left)))
    n = min(n, len(row) - 1)
    hinges = [(0.2 + view[c] - view[query]).clamp(min=0) for c in negatives]
    return cost + 0.8 * len(s.i2t) * y * sum(sorted(hinges, key=Tensor.item)[-n:]) / n


def naive_cream(
    s: Similarities, row: Tensor, query: int, scale: float = 14.3, floor: float | None = None
) -> Tensor:
    p, y = probabilities(s, row, query, scale), float(sure(s, query))
    negatives = sides(s, query)[1]
    if floor is None:
        floor = sum(float(sure(s, i)) for i in range(len(s.i2t))) / len(s.i2t)
    cost = -y * p[query].log()
    similar = {n: max(row[n].item(), 0.0) for n in negatives}
    for n in negatives:
        target = (1 - y) * similar[n] / (sum(similar.values()) + 1e-6)
        cost = cost - (target if target >= floor else 0.0) * p[n].log()
    return cost / 2


def at(step: int) -> Callable[[Similarities], Tensor]:
    """DECL at a step of training; two negatives fewer after every 80."""
    return lambda s: decl(replace(s, step=step), floor=2)


CASES: dict[str, Case] = {
    "crcl": (crcl, by_row(naive_crcl)),
    "crcl mild": (partial(crcl, scale=4.0, weight=2.0), by_row(partial(naive_crcl, scale=4.0, weight=2.0))),
    "decl": (decl, by_row(naive_decl)),
    "decl one": (partial(decl, floor=1), by_row(partial(naive_decl, n=1))),
    "decl tanh": (partial(decl, kappa=2.0, tau=0.3), by_row(partial(naive_decl, kappa=2.0, tau=0.3))),
    "cream": (cream, by_row(naive_cream)),
    "cream low": (partial(cream, floor=0.1), by_row(partial(naive_cream, floor=0.1))),
    "cream all": (partial(cream, scale=5.0, floor=0.0), by_row(partial(naive_cream, scale=5.0, floor=0.0))),
}


@pytest.mark.parametrize(("ids", "extra", "doubt"), BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_in_value_and_gradient(case: str, ids: Tensor, extra: int, doubt: bool) -> None:
    s = batch(extra=extra, ids=ids, doubt=doubt)
    assert_equal_in_value_and_gradient(CASES[case], s)
    if s.confidence is not None:  # the edges of the labels
        edges = torch.arange(len(ids), dtype=torch.float64) % 2
        assert_equal_in_value_and_gradient(CASES[case], replace(s, confidence=edges))


@pytest.mark.parametrize(("step", "n"), [(0, 7), (80, 6), (200, 3), (10_000, 2)])
def test_decl_ranks_fewer_negatives_over_time(step: int, n: int) -> None:
    s = batch(ids=torch.arange(8), doubt=True)
    assert_equal_in_value_and_gradient((at(step), by_row(partial(naive_decl, n=n))), s)


@pytest.mark.parametrize(("name", "given"), [*SOFT[:3], ("cream", {"floor": 0.9})])
def test_gradcheck_with_soft_labels(name: str, given: dict[str, float]) -> None:
    """Under a floor of 0.9 no negative is a target, which would be constant to autograd."""
    s = batch(doubt=True, extra=3)
    loss = build(name, **given)
    assert torch.autograd.gradcheck(lambda a, b: loss(replace(s, i2t=a, t2i=b)), (s.i2t, s.t2i))


@pytest.mark.parametrize(("name", "given"), SOFT)
@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1e3, 1.0, 1e-30, 0.0])
def test_any_similarity_stays_finite_in_float32(
    name: str, given: dict[str, float], label: float, size: float
) -> None:
    ids = torch.tensor([0, 1, 1, 2])
    for sign in (1, -1):
        i2t = (sign * size * (2 * torch.eye(4) - 1)).requires_grad_()
        confidence = torch.full((4,), label)
        value = build(name, **given)(Similarities(i2t, i2t.T, ids.unsqueeze(1) == ids, confidence))
        value.backward()
        assert value.isfinite()
        assert i2t.grad is not None
        assert i2t.grad.isfinite().all()


def test_crcl_lies_between_infonce_and_a_bounded_cost() -> None:
    s = batch(extra=2)
    torch.testing.assert_close(crcl(s), 2 * infonce(s) + 5 * rcl_tan(s))
    doubted = replace(s, confidence=torch.zeros(len(s.i2t), dtype=torch.float64))
    tangents = torch.zeros((), dtype=torch.float64)
    for similarity in (s.i2t, s.t2i):
        p = (20 * similarity).masked_fill(s.others, -torch.inf).softmax(-1).tan()
        tangents = tangents + (1 - p.diagonal() / p.sum(-1)).mean()
    torch.testing.assert_close(crcl(doubted), 5 * tangents)
    assert 0 < crcl(doubted) < 2 * 5


def test_cream_of_certain_pairs_is_infonce_and_above_the_floor_weighs_it() -> None:
    s = batch(extra=2)
    torch.testing.assert_close(cream(s, scale=20.0), infonce(s))
    half = replace(s, confidence=torch.full((len(s.i2t),), 0.5, dtype=torch.float64))
    torch.testing.assert_close(cream(half, scale=20.0, floor=0.51), infonce(s) / 2)


def test_cream_moves_the_target_to_the_one_negative_that_resembles_the_query() -> None:
    i2t = torch.tensor([[-0.2, 0.5, -0.1], [-0.1, -0.2, 0.3], [0.4, -0.3, -0.2]], dtype=torch.float64)
    s = Similarities(i2t, i2t.T, torch.eye(3, dtype=torch.bool), torch.zeros(3, dtype=torch.float64))
    shifted = Similarities(i2t.roll(-1, 1), i2t.roll(-1, 1).T, s.positive)
    for floor in (None, 0.9):
        torch.testing.assert_close(cream(s, floor=floor), infonce(shifted, scale=14.3), rtol=1e-4, atol=0)


def test_decl_is_as_far_from_uniform_as_torch_says() -> None:
    generator = torch.Generator().manual_seed(0)
    exponent = 10 * (2 * torch.rand(2, 6, 9, generator=generator) - 1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        mine, theirs = (exponent.to(dtype).exp().requires_grad_() for _ in range(2))
        found = _above_uniform(mine, torch.full((6,), 9))
        expected = kl_divergence(Dirichlet(theirs + 1), Dirichlet(torch.ones_like(theirs)))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 10)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=tolerance, atol=tolerance)


def test_decl_ranks_nothing_by_a_pair_that_it_rejects() -> None:
    s = batch(doubt=True)
    rejected = replace(s, confidence=torch.zeros(len(s.i2t), dtype=torch.float64))
    torch.testing.assert_close(decl(rejected, hinge=9.0), decl(rejected, hinge=0.0))
    assert decl(s, hinge=9.0) > decl(s, hinge=0.0)


def test_decl_learns_from_a_rejected_pair_that_it_is_no_match() -> None:
    i2t = torch.full((8, 8), -1.0, dtype=torch.float64).fill_diagonal_(0.6)  # log(e) is 6 and -10
    slopes = []
    for label in (0.0, 1.0):
        leaf = i2t.clone().requires_grad_()
        confidence = torch.full((8,), label, dtype=torch.float64)
        decl(Similarities(leaf, leaf.T, torch.eye(8, dtype=torch.bool), confidence)).backward()
        assert leaf.grad is not None
        slopes.append(float(leaf.grad[0, 0]))
    assert slopes[0] > 0 > slopes[1]
    assert math.isfinite(slopes[0])
