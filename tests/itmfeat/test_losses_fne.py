"""FNE against loops in float64: weights, cuts, fallback, draws, soft margins, memory candidates."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_losses import BATCHES, assert_equal_in_gradient, batch, sides, sure
from torch import Tensor

from itmfeat.errors import UsageError
from itmfeat.losses import Similarities, build, parameters
from itmfeat.losses.fne import fne
from itmfeat.losses.similarity import Statistics
from itmfeat.losses.triplet import triplet


def statistics(match: float, deviation: float, count: int = 500, other: float = 0.25) -> Statistics:
    facts = (match, deviation**2, 0.1, other**2, count)
    return Statistics(*(torch.tensor(fact, dtype=torch.float64) for fact in facts))


SEEN: dict[str, Statistics | None] = {
    "nothing": None,
    "wide matches": statistics(0.5, 0.4),
    "narrow matches": statistics(0.6, 0.1),
    "a high cut": statistics(1.1, 0.3),
    "too little": statistics(0.5, 0.4, count=199),
    "no spread": statistics(0.5, 0.0, other=0.0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "likely": {"prior": 0.3},
    "exp": {"prior": 0.3, "weight": "exp", "tau": 0.1},
    "linear": {"prior": 0.3, "weight": "linear", "threshold": 0.2},
    "anchor": {"prior": 0.3, "cut": "anchor", "margin": 0.4},
    "none": {"prior": 0.3, "cut": "none"},
    "early": {"prior": 0.3, "start": 100},
}


def normal(x: float, mean: float, variance: float) -> float:
    """Log density, up to a constant."""
    variance = max(variance, 1e-6)
    return -((x - mean) ** 2) / (2 * variance) - math.log(variance) / 2


def naive_weight(x: float, d: float, seen: list[float] | None, o: dict[str, Any]) -> float:
    mild = math.exp(-((x - d) ** 2) / 2)
    if seen is None or seen[4] < o["start"] or x <= seen[2]:
        return mild
    ratio = normal(x, *seen[:2]) - normal(x, *seen[2:4]) + math.log(o["prior"] / (1 - o["prior"]))
    p = 1 / (1 + math.exp(-ratio)) if ratio > -700 else 0.0
    if p <= o["threshold"]:
        return mild
    if o["weight"] == "linear":
        return 1 - p
    return math.exp(-p / 2 if o["weight"] == "code" else -p / o["tau"])


def naive_draw(weights: dict[int, float], number: float) -> int | None:
    """The candidate at which the running sum first exceeds the number's share."""
    share, total = number * sum(weights.values()), 0.0
    for candidate, weight in weights.items():
        total += weight
        if total > share:
            return candidate
    return None


def naive_fne(s: Similarities, **given: Any) -> Tensor:
    o = parameters("fne") | given
    numbers = torch.rand(2, len(s.i2t), generator=torch.Generator().manual_seed((s.draw_seed or 0) ^ 1))
    seen = None if s.statistics is None else [float(value) for value in s.statistics]
    total = torch.zeros((), dtype=torch.float64)
    for way, matrix in enumerate((s.i2t, s.t2i)):
        for query, row in enumerate(matrix):
            x, margin = row.tolist(), o["margin"]
            own = margin * (1 if s.margin_factor is None else float(s.margin_factor[query]))
            if o["cut"] == "none":
                cut = -math.inf
            elif o["cut"] == "mean" and seen is not None and seen[4] >= o["start"]:
                cut = seen[0] - margin
            else:
                cut = x[query] - own
            negatives = sides(s, query)[1]
            drawn = [n for n in negatives if x[n] > cut] or sorted(negatives, key=lambda n: -x[n])[:1]
            weights = {n: naive_weight(x[n], x[query], seen, o) for n in drawn}
            found = naive_draw(weights, float(numbers[way, query]))
            if found is not None:
                hinge = (own - row[query] + row[found]).clamp(min=0)
                total = total + sure(s, query) * hinge
    return total / len(s.i2t)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_loops_in_value_and_gradient(options: str, seen: str) -> None:
    for seed, (ids, extra, doubt) in enumerate(BATCHES):
        s = batch(extra=extra, ids=ids, doubt=doubt, seed=seed)
        margin = torch.rand(len(ids), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        s = replace(s, statistics=SEEN[seen], draw_seed=seed, margin_factor=margin if seed % 2 else None)
        values = fne(s, **OPTIONS[options]), naive_fne(s, **OPTIONS[options])
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
        assert_equal_in_gradient(values, s)


def test_a_stack_with_statistics_equals_its_runs() -> None:
    s = batch(runs=3, extra=5)
    means = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    seen = Statistics(means, means / 10, means - 0.3, means / 20, torch.tensor([500, 100, 500]))
    s = replace(s, statistics=seen, draw_seed=7)
    alone = [fne(s.run(torch.tensor(run)), prior=0.2) for run in range(3)]
    torch.testing.assert_close(fne(s, prior=0.2), torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"weight": "exp", "tau": 0.2}, {"weight": "linear"}])
def test_draws_follow_the_weights(options: dict[str, Any]) -> None:
    """20,000 draws among eight candidates: chi-square of 7 degrees, below its 99.9th percentile."""
    size, seeds = 200, 100
    x = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    matrix = torch.cat([torch.zeros(size, size, dtype=torch.float64), x.expand(size, 8)], -1)
    positive = torch.arange(size + 8).expand(size, -1) < size
    seen = statistics(0.5, 0.2)
    given = {"prior": 0.3, "cut": "none", **options}
    found = torch.zeros(8, dtype=torch.float64)
    for seed in range(seeds):
        i2t = matrix.clone().requires_grad_()
        s = Similarities(i2t, matrix, positive, statistics=seen, draw_seed=seed)
        (gradient,) = torch.autograd.grad(fne(s, **given), i2t)
        found += gradient.sum(0)[size:] * size
    o = parameters("fne") | given
    weights = torch.tensor([naive_weight(float(v), 0.0, [float(f) for f in seen], o) for v in x])
    expected = size * seeds * weights / weights.sum()
    assert float(found.sum()) == pytest.approx(size * seeds)
    assert float(((found - expected) ** 2 / expected).sum()) < 24.3


def test_false_negatives_are_hardly_drawn_unless_as_in_the_code() -> None:
    """A near copy of the match among ten negatives: every tenth draw in the code's way, few in the others."""
    matrix = torch.full((500, 511), 0.5, dtype=torch.float64)
    matrix[:, -1] = 0.85
    matrix[:, :500] = 0.8
    positive = torch.arange(511).expand(500, -1) < 500
    shares = {}
    for name in ("code", "exp", "linear"):
        i2t = matrix.clone().requires_grad_()
        s = Similarities(i2t, matrix, positive, statistics=statistics(0.8, 0.05, other=0.1))
        value = fne(s, prior=0.1, cut="none", weight=name, tau=0.1, margin=0.5)
        (gradient,) = torch.autograd.grad(value, i2t)
        shares[name] = float(gradient[:, -1].sum())
    assert shares["code"] > 0.04
    assert max(shares["exp"], shares["linear"]) < 0.005


def test_warms_up_with_the_hardest_of_the_batch() -> None:
    s = replace(batch(), epoch=0)
    torch.testing.assert_close(fne(s), triplet(s, warmup_epochs=0))
    torch.testing.assert_close(fne(replace(s, epoch=1)), naive_fne(s))


def test_extremes_stay_finite() -> None:
    """Huge, tiny and equal similarities in float32, with any statistics."""
    for scale in (0.0, 1e-30, 1e30):
        for seen in SEEN.values():
            i2t = (batch().i2t.detach().float() * scale).requires_grad_()
            facts = None if seen is None else Statistics(*(value.float() for value in seen))
            s = Similarities(i2t, i2t.T, batch().positive, statistics=facts)
            for weight in ("code", "exp", "linear"):
                value = build("fne", weight=weight)(s)
                (gradient,) = torch.autograd.grad(value, i2t)
                assert value.isfinite()
                assert gradient.isfinite().all()


def test_everything_certainly_false_costs_nothing() -> None:
    """Where even the only negative is a sure match there is none to draw."""
    i2t = torch.tensor([[0.8, 0.8], [0.8, 0.8]], dtype=torch.float32, requires_grad=True)
    facts = Statistics(*(torch.tensor(v) for v in (0.8, 0.01, -0.5, 0.01, 500.0)))
    s = Similarities(i2t, i2t.T, torch.eye(2, dtype=torch.bool), statistics=facts)
    assert float(fne(s, weight="linear").detach()) == 0
    assert float(fne(s, weight="code").detach()) == pytest.approx(0.4)


def test_parameters() -> None:
    assert parameters("fne")["memory"] == 8224
    loss = build("fne", memory=100, weight="exp", runs=2)
    assert loss.memory == {"memory": 100, "momentum": 0.995}
    assert loss(batch(runs=2)).shape == (2,)
    with pytest.raises(UsageError, match="cut"):
        build("fne", cut="nothing")
