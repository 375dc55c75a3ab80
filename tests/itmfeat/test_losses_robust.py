"""Losses that bear wrong captions: RCL, TAL, symmetric and generalised cross entropy."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from test_losses import (
    BATCHES,
    Case,
    Row,
    assert_equal_in_value_and_gradient,
    batch,
    by_query,
    probabilities,
    sides,
)
from torch import Tensor

from itmfeat.losses import Similarities, build
from itmfeat.losses.cross_entropy import gce, sce
from itmfeat.losses.infonce import infonce
from itmfeat.losses.rcl import rcl_exp, rcl_gce, rcl_log, rcl_mae, rcl_tan
from itmfeat.losses.tal import tal
from itmfeat.losses.triplet import triplet


def naive_rcl(cost: Callable[[Tensor, Tensor], Tensor], scale: float = 20.0) -> Row:
    def complementary(s: Similarities, row: Tensor, query: int) -> Tensor | float:
        p = probabilities(s, row, query, scale)
        negatives = sides(s, query)[1]
        rest = {n: sum(p[c] for c in p if c != n) for n in negatives}
        return sum((cost(p[n], torch.as_tensor(rest[n])) for n in negatives), torch.zeros(()))

    return complementary


def naive_tal(s: Similarities, row: Tensor, query: int, m: float = 0.1, tau: float = 0.015) -> Tensor | float:
    matches, negatives = sides(s, query)
    if not negatives:
        return 0.0
    weights = [(row[k].item() / tau, row[k]) for k in matches]
    below = sum(math.exp(w) for w, _ in weights)
    match = sum(math.exp(w) / below * x for w, x in weights)
    cost = m - match + tau * torch.stack([(row[n] / tau).exp() for n in negatives]).sum().log()
    return cost if cost > 0 else 0.0


def naive_sce(s: Similarities, row: Tensor, query: int, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    p = probabilities(s, row, query)
    reverse = -sum(p[c] * math.log(1.0 if c == query else 1e-4) for c in p)
    return (-alpha * p[query].log() + beta * reverse) / 2


def naive_gce(s: Similarities, row: Tensor, query: int, q: float = 0.7) -> Tensor:
    return (1 - probabilities(s, row, query)[query] ** q) / q / 2


def by(cost: Row) -> Callable[[Similarities], Tensor]:
    return partial(by_query, cost=cost)


CASES: dict[str, Case] = {
    "rcl-log": (rcl_log, by(naive_rcl(lambda p, rest: -rest.log()))),
    "rcl-log warm": (partial(rcl_log, scale=5.0), by(naive_rcl(lambda p, rest: -rest.log(), 5.0))),
    "rcl-tan": (rcl_tan, by(naive_rcl(lambda p, rest: p.tan()))),
    "rcl-exp": (rcl_exp, by(naive_rcl(lambda p, rest: (-rest).exp()))),
    "rcl-gce": (rcl_gce, by(naive_rcl(lambda p, rest: (1 - rest**0.5) / 0.5))),
    "rcl-gce q": (partial(rcl_gce, q=0.9), by(naive_rcl(lambda p, rest: (1 - rest**0.9) / 0.9))),
    "rcl-mae": (rcl_mae, by(naive_rcl(lambda p, rest: p))),
    "tal": (tal, by(naive_tal)),
    "tal wide": (partial(tal, margin=0.3, tau=0.2), by(partial(naive_tal, m=0.3, tau=0.2))),
    "sce": (sce, by(naive_sce)),
    "sce cifar-100": (partial(sce, alpha=6.0, beta=0.1), by(partial(naive_sce, alpha=6.0, beta=0.1))),
    "gce": (gce, by(naive_gce)),
    "gce mae": (partial(gce, q=1.0), by(partial(naive_gce, q=1.0))),
}


@pytest.mark.parametrize(("ids", "extra", "doubt"), BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_in_value_and_gradient(case: str, ids: Tensor, extra: int, doubt: bool) -> None:
    assert_equal_in_value_and_gradient(CASES[case], batch(extra=extra, ids=ids, doubt=doubt))


def test_rcl_mae_is_the_probability_that_the_pair_lacks() -> None:
    s = batch(ids=torch.arange(8))
    lack = [1 - (20 * m).softmax(-1).diagonal() for m in (s.i2t, s.t2i)]
    torch.testing.assert_close(rcl_mae(s), torch.stack(lack).sum(0).mean())
    torch.testing.assert_close(rcl_mae(s), 2 * gce(s, q=1.0))


def test_cross_entropies_reach_infonce() -> None:
    s = batch()
    torch.testing.assert_close(sce(s, alpha=1.0, beta=0.0), infonce(s))
    torch.testing.assert_close(gce(s, q=1e-6), infonce(s), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rcl-log", "rcl-tan", "rcl-exp", "rcl-gce", "rcl-mae", "sce", "gce"])
def test_sure_and_wrong_stays_finite_in_float32(name: str) -> None:
    """A negative that takes all the probability: 1 - p is zero in float32."""
    i2t = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
    s = Similarities(i2t, i2t.T, torch.eye(2, dtype=torch.bool))
    value = build(name)(s)
    value.backward()
    assert value.isfinite()
    assert i2t.grad is not None
    assert i2t.grad.isfinite().all()
    if name == "rcl-log":  # -log(1 - p) = scale * (s_in - s_ii), both directions
        assert value.item() == pytest.approx(2 * 20 * 2, rel=1e-5)


def test_rcl_hardly_follows_a_pair_that_it_does_not_believe() -> None:
    """The gradient on a match of similarity 0 among negatives up to 0.3 is far below InfoNCE's."""
    i2t = torch.linspace(-0.1, 0.3, 128, dtype=torch.float64).repeat(128, 1).fill_diagonal_(0.0)
    found = {}
    for name in ("infonce", "rcl-log", "rcl-mae"):
        s = Similarities(i2t.clone().requires_grad_(), i2t, torch.eye(128, dtype=torch.bool))
        build(name)(s).backward()
        assert s.i2t.grad is not None
        found[name] = float(s.i2t.grad.diagonal().abs().max()) * 128
    assert found["infonce"] * 2 > 19
    assert max(found["rcl-log"], found["rcl-mae"]) < 0.05


def test_tal_bounds_the_hardest_triplet_and_reaches_it() -> None:
    """Each hinge lies above the hardest triplet's by at most tau log(M - 1)."""
    s = batch(ids=torch.arange(8) + 9, extra=3)
    assert not s.others.any()
    for tau in (0.1, 0.01, 0.001):
        above = float((tal(s, margin=0.2, tau=tau) - triplet(s)).detach())
        assert 0 <= above <= 2 * tau * math.log(s.i2t.shape[-1] - 1)
