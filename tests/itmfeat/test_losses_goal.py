"""GOAL: its weights by loops, its gradients as the paper states them, and which of them have an integral."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from test_losses import BATCHES, assert_equal_in_value_and_gradient, batch, by_query, sides
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from itmfeat.cli import app
from itmfeat.losses import LOSSES, Similarities, build, parameters, similarities
from itmfeat.losses.goal import PAIRS, TRIPLETS
from itmfeat.losses.triplet import triplet

TAU, A, B, LEVEL, EPS = 10.0, 2.0, 10.0, 0.5, 0.1
NAMES = [f"goal-{first}-{second}" for first, second in itertools.product(TRIPLETS, PAIRS)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float], empty: float) -> float:
    return sum(values) / len(values) if values else empty


def weights(
    name: str, s: Similarities, row: Tensor, query: int, clamp: bool = True
) -> tuple[float, float, float, int]:
    """w_t, w_p, w_n and the hardest negative of a query, by scalar arithmetic; `row` are its similarities."""
    first, second = name.removeprefix("goal-").split("-")
    negatives = sides(s, query)[1]
    row = row.detach()
    place = max(negatives, key=lambda c: float(row[c]))
    matches: list[float] = s.i2t.detach().diagonal().tolist()
    p, n = matches[query], float(row[place])
    w_t = {"con": 1.0, "nca": sigmoid(TAU * (n - p)), "cir": sigmoid(TAU * (n * n - p * (2 - p) + 0.5))}[
        first
    ]
    near = [m for i, m in enumerate(matches) if i != query and m <= n + EPS]
    hard = [float(row[c]) for c in negatives if c != place and float(row[c]) >= min(matches) - EPS]
    if second == "con":
        w_p, w_n = 1.0, 1.0
    elif second == "lin":
        w_p, w_n = 1 - p, n
    elif second == "sig":
        w_p, w_n = sigmoid(-A * (p - LEVEL)), sigmoid(B * (n - LEVEL))
    elif second == "lin_ms":
        w_p = (1 - mean([p - m for m in near], 0)) * (1 - p)
        w_n = (1 + mean([n - h for h in hard], 0)) * n
    else:
        w_p = 1 / (math.exp(A * (p - LEVEL)) + mean([math.exp(A * (p - m)) for m in near], 1))
        w_n = 1 / (math.exp(-B * (n - LEVEL)) + mean([math.exp(-B * (n - h)) for h in hard], 1))
    if clamp:
        w_p, w_n = max(w_p, 0.0), max(w_n, 0.0)
    return w_t, w_p, w_n, place


def naive(name: str, gate: float | None = None, clamp: bool = True) -> Callable[[Similarities], Tensor]:
    def cost(s: Similarities, row: Tensor, query: int) -> Tensor | float:
        if not sides(s, query)[1]:
            return 0.0
        w_t, w_p, w_n, place = weights(name, s, row, query, clamp)
        own = s.i2t[query, query]
        if gate is not None and float((row[place] - own).detach()) + gate <= 0:
            return 0.0
        return w_t * w_n * row[place] - w_t * w_p * own

    return lambda s: by_query(s, cost)


def test_there_are_fifteen_and_each_shows_what_it_uses() -> None:
    assert [name for name in LOSSES if name.startswith("goal-")] == NAMES
    assert len(NAMES) == 15
    lines = CliRunner().invoke(app, ["losses", "goal"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == NAMES
    assert parameters("goal-con-con") == {"gate": None, "warmup_epochs": 1}
    assert parameters("goal-nca-con") == {"tau": TAU, "gate": None, "warmup_epochs": 1}
    assert {"a", "b", "level", "eps"} <= set(parameters("goal-con-sig_ms"))
    assert {"eps", "clamp"} <= set(parameters("goal-con-lin_ms"))


@pytest.mark.parametrize(("ids", "extra", "doubt"), BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_loops(name: str, ids: Tensor, extra: int, doubt: bool) -> None:
    s = batch(extra=extra, ids=ids, doubt=doubt)
    assert_equal_in_value_and_gradient((build(name), naive(name)), s)


@pytest.mark.parametrize("name", ["goal-nca-con", "goal-cir-lin_ms"])
def test_gate_and_clamp_equal_loops(name: str) -> None:
    for seed in range(4):
        s = batch(seed=seed)
        assert_equal_in_value_and_gradient((build(name, gate=0.2), naive(name, gate=0.2)), s)
    s = Similarities(
        (s.i2t - 0.9).detach().requires_grad_(), (s.t2i - 0.9).detach().requires_grad_(), s.positive
    )
    assert (s.i2t.masked_fill(s.positive, -9).amax(-1) < 0).any()
    given = {"clamp": False} if "lin" in name else {}
    assert_equal_in_value_and_gradient((build(name, **given), naive(name, clamp="lin" not in name)), s)


def embeddings(size: int = 9, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors and ids of images with up to two captions in the batch."""
    generator = torch.Generator().manual_seed(3)
    v, t = (
        F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    return v.requires_grad_(), t.requires_grad_(), torch.tensor([0, 1, 2, 0, 3, 4, 5, 3, 6])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("upstream", [1.0, 1024.0])
def test_gradient_is_that_of_the_paper(name: str, upstream: float) -> None:
    """w_t (w_n t_n - w_p t_i) on v_i, and so on, however many anchors share a negative, times upstream."""
    v, t, ids = embeddings()
    same = ids.unsqueeze(1) == ids
    s = Similarities(v @ t.T, t @ v.T, same)
    (upstream * build(name)(s)).backward()
    expected = {"v": torch.zeros_like(v), "t": torch.zeros_like(t)}
    shared = []
    for matrix, (x, own), (y, other) in ((s.i2t, ("v", v), ("t", t)), (s.t2i, ("t", t), ("v", v))):
        for i in range(len(ids)):
            w_t, w_p, w_n, n = weights(name, s, matrix[i], i)
            shared.append((x, n))
            expected[x][i] += w_t * (w_n * other[n] - w_p * other[i]).detach()
            expected[y][i] -= w_t * w_p * own[i].detach()
            expected[y][n] += w_t * w_n * own[i].detach()
    assert len(set(shared)) < len(shared)  # several anchors with one hardest negative
    assert v.grad is not None
    assert t.grad is not None
    torch.testing.assert_close(v.grad, expected["v"] * upstream / len(ids), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(t.grad, expected["t"] * upstream / len(ids), rtol=1e-9, atol=1e-12)


INTEGRALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "goal-con-con": lambda p, n: n - p,
    "goal-nca-con": lambda p, n: F.softplus(TAU * (n - p), threshold=100) / TAU,
    "goal-con-lin": lambda p, n: n.square() / 2 + (1 - p).square() / 2,
    "goal-con-sig": lambda p, n: (
        F.softplus(B * (n - LEVEL), threshold=100) / B + F.softplus(-A * (p - LEVEL), threshold=100) / A
    ),
    "goal-cir-lin": lambda p, n: (
        F.softplus(TAU * (n.square() + (1 - p).square() - 0.5), threshold=100) / (2 * TAU)
    ),
}


def integral(name: str, s: Similarities) -> Tensor:
    """The true loss: mean over queries, both directions, of a function of p and the hardest negative."""
    p = s.pair
    return (
        torch.stack(
            [INTEGRALS[name](p, m.masked_fill(s.positive, -torch.inf).amax(-1)) for m in (s.i2t, s.t2i)]
        )
        .sum(0)
        .mean(-1)
    )


@pytest.mark.parametrize("name", INTEGRALS)
def test_integrable_combinations_have_the_gradient_of_their_loss(name: str) -> None:
    s = batch(extra=3)
    given = {"clamp": False} if name.endswith("lin") else {}
    mine = torch.autograd.grad(build(name, **given)(s), [s.i2t, s.t2i])
    theirs = torch.autograd.grad(integral(name, s), [s.i2t, s.t2i])
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", INTEGRALS)
def test_integrals_by_finite_differences(name: str) -> None:
    s = batch()
    assert torch.autograd.gradcheck(
        lambda i2t, t2i: integral(name, Similarities(i2t, t2i, s.positive)), (s.i2t, s.t2i)
    )


def jacobian(name: str, s: Similarities, step: float = 1e-5) -> Tensor:
    """Derivative of the gradient field over all similarities, by central differences."""
    loss = build(name, **({"clamp": False} if "lin" in name else {}))

    def field(i2t: Tensor) -> Tensor:
        i2t = i2t.view_as(s.i2t).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(Similarities(i2t, i2t.T, s.positive)), i2t)
        return gradient.flatten()

    start = s.i2t.detach().flatten()
    moves = step * torch.eye(len(start), dtype=torch.float64)
    return torch.stack([(field(start + move) - field(start - move)) / (2 * step) for move in moves], 1)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_integrable_combinations_are_gradients_of_a_loss(name: str) -> None:
    """A gradient field has no curl: its Jacobian is symmetric. That of the ten others is not."""
    matrix = jacobian(name, batch())
    curl = (matrix - matrix.T).abs().max()
    assert curl < 1e-7 if name in INTEGRALS else curl > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    v, t, ids = embeddings()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    plain = torch.autograd.grad(build(name)(similarities(v, t, ids)), (v, t))
    mixed = torch.autograd.grad(build(name)(similarities(v[order], t[order], ids[order])), (v, t))
    torch.testing.assert_close(plain, mixed)


def test_an_empty_relative_set_keeps_the_weights_bounded() -> None:
    """Two pairs, no other negative: w_n = sigmoid(b (n - l)), where the official code has exp(b (n - l))."""
    i2t = torch.tensor([[-0.8, 1.0], [1.0, -0.8]], dtype=torch.float64, requires_grad=True)
    s = Similarities(i2t, i2t.T, torch.eye(2, dtype=torch.bool))
    build("goal-con-sig_ms")(s).backward()
    assert i2t.grad is not None
    assert i2t.grad[0, 1].item() == pytest.approx(sigmoid(B * 0.5), rel=1e-9)


def test_the_first_epoch_takes_the_sum_of_triplets() -> None:
    s = batch()
    first = Similarities(s.i2t, s.t2i, s.positive, epoch=0)
    torch.testing.assert_close(build("goal-nca-lin")(first), triplet(s, hardest=False))
    later = Similarities(s.i2t, s.t2i, s.positive, epoch=1)
    torch.testing.assert_close(build("goal-nca-lin")(later), build("goal-nca-lin")(s))
