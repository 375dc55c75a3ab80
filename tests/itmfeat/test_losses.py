"""Each loss against naive loops in float64: value and gradient, ties of images, stacks, memory."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from itmfeat.errors import UsageError
from itmfeat.losses import LOSSES, Similarities, build, parameters, similarities
from itmfeat.losses.infonce import infonce
from itmfeat.losses.snll import snll
from itmfeat.losses.triplet import triplet

IDS = torch.tensor([4, 9, 4, 2, 7, 9, 9])


def batch(runs: int | None = None, extra: int = 0, ids: Tensor = IDS, seed: int = 0) -> Similarities:
    """Random similarities of a batch, with `extra` candidates from a memory behind it."""
    generator = torch.Generator().manual_seed(seed)
    size = len(ids)
    shape = (size, size) if runs is None else (runs, size, size)
    i2t = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    memory = torch.rand(*shape[:-1], extra, generator=generator, dtype=torch.float64)
    other = torch.rand(*shape[:-1], extra, generator=generator, dtype=torch.float64)
    all_ids = torch.cat([ids, torch.arange(extra) + 2])  # some of the memory shows the same images
    return Similarities(
        torch.cat([i2t, memory], -1).requires_grad_(),
        torch.cat([i2t.transpose(-1, -2), other], -1).requires_grad_(),
        ids.unsqueeze(1) == all_ids,
    )


def rows(s: Similarities) -> list[tuple[Tensor, int]]:
    return [(matrix, row) for matrix in (s.i2t, s.t2i) for row in range(len(s.i2t))]


def naive_triplet(s: Similarities, margin: float = 0.2, hardest: bool = True) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for matrix, row in rows(s):
        costs = [torch.zeros((), dtype=torch.float64)]
        for column in range(matrix.shape[1]):
            if not s.positive[row, column]:
                cost = margin + matrix[row, column] - s.i2t[row, row]
                costs.append(cost if cost > 0 else cost * 0)
        total = total + (max(costs) if hardest else sum(costs))  # type: ignore[type-var,operator]
    return total / len(s.i2t)


def naive_infonce(s: Similarities, scale: float = 20.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for matrix, row in rows(s):
        below = sum(
            (scale * matrix[row, column]).exp()
            for column in range(matrix.shape[1])
            if column == row or not s.positive[row, column]
        )
        total = total - ((scale * matrix[row, row]).exp() / below).log()
    return total / (2 * len(s.i2t))


def naive_snll(s: Similarities, scale: float = 10.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    bias = -math.log(s.i2t.shape[1] - 1)
    for row in range(len(s.i2t)):
        for column in range(s.i2t.shape[1]):
            p = 1 / (1 + (-(scale * s.i2t[row, column] + bias)).exp())
            total = total - (p if s.positive[row, column] else 1 - p).log()
    return total / len(s.i2t)


CASES: list[tuple[Callable[[Similarities], Tensor], Callable[[Similarities], Tensor]]] = [
    (triplet, naive_triplet),
    (lambda s: triplet(s, hardest=False, margin=0.3), lambda s: naive_triplet(s, 0.3, hardest=False)),
    (infonce, naive_infonce),
    (snll, naive_snll),
]


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("ids", [IDS, torch.tensor([3, 1]), torch.tensor([5, 5, 5]), torch.arange(8)])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_equals_loops_in_value_and_gradient(case: int, ids: Tensor, extra: int) -> None:
    fast, slow = CASES[case]
    s = batch(extra=extra, ids=ids)
    value, expected = fast(s), slow(s)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    inputs = [s.i2t, s.t2i]
    # An all-positive batch has constant cost zero: then there is no graph to compare.
    if expected.requires_grad:
        mine = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_stack_equals_its_runs(name: str) -> None:
    s = batch(runs=3)
    together = build(name, runs=3)(s)
    alone = [build(name)(s.run(torch.tensor(run))) for run in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_confidence_one_changes_nothing_and_zero_removes_the_pair(name: str) -> None:
    s = batch()
    sure = Similarities(s.i2t, s.t2i, s.positive, torch.ones(len(IDS), dtype=torch.float64))
    torch.testing.assert_close(build(name)(sure), build(name)(s))
    doubt = sure.confidence
    assert doubt is not None
    doubt[0] = 0
    build(name)(sure).backward()
    assert s.i2t.grad is not None
    if name != "snll":  # there the pair's own term goes and its row of negatives stays
        assert s.i2t.grad[0].abs().sum() == 0
    assert s.i2t.grad[0, 0] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    s = batch()
    loss = build(name)

    def call(i2t: Tensor) -> Tensor:
        return loss(Similarities(i2t, i2t.transpose(-1, -2), s.positive))

    assert torch.autograd.gradcheck(call, (s.i2t,))


def test_triplet_warms_up_with_the_sum() -> None:
    s = batch()
    warm = Similarities(s.i2t, s.t2i, s.positive, epoch=0)
    after = Similarities(s.i2t, s.t2i, s.positive, epoch=1)
    torch.testing.assert_close(build("triplet")(warm), triplet(s, hardest=False))
    torch.testing.assert_close(build("triplet")(after), triplet(s))


@pytest.mark.parametrize("size", [2, 128])
def test_snll_starts_at_its_prior(size: int) -> None:
    """At S = 0 the loss is log N + (N - 1) log(N / (N - 1)), whatever the temperature."""
    s = Similarities(torch.zeros(size, size), torch.zeros(size, size), torch.eye(size, dtype=torch.bool))
    expected = math.log(size) + (size - 1) * math.log(size / (size - 1))
    for scale in (1.0, 10.0):
        assert snll(s, scale=scale).item() == pytest.approx(expected, rel=1e-5)
    if size == 128:
        assert expected == pytest.approx(5.848114, abs=1e-6)


def test_snll_is_siglip_is_pcmepp_without_variance() -> None:
    """-5 |u - v|^2 + 5 = 10 cos - 5: PCME++'s logit at zero variance is SNLL at t = 10, b = -5."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    s = similarities(u, v)
    u, v = (torch.nn.functional.normalize(x, dim=-1) for x in (u, v))
    logits = -5 * (u.unsqueeze(1) - v).square().sum(-1) + 5
    labels = torch.eye(6, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels) * 6
    torch.testing.assert_close(snll(s, scale=10.0, bias=-5.0), expected)


def test_learned_scalars_start_at_the_defaults_and_learn() -> None:
    s = batch(runs=2)
    loss = build("snll", runs=2)
    assert [tuple(p.shape) for p in loss.parameters()] == [(2,), (2,)]
    torch.testing.assert_close(loss(s), build("snll", runs=2, learn=False)(s))
    loss(s).sum().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in loss.parameters())
    assert list(build("infonce", learn=False).parameters()) == []


def test_similarities_normalise_and_mark_positives() -> None:
    s = similarities(torch.tensor([[3.0, 0], [0, 2]]), torch.tensor([[5.0, 5], [0, 1]]), torch.tensor([1, 1]))
    torch.testing.assert_close(s.i2t[0], torch.tensor([0.5**0.5, 0]))
    assert s.positive.all()
    assert s.others.tolist() == [[False, True], [True, False]]


def test_bad_names_and_values() -> None:
    with pytest.raises(UsageError, match="did you mean 'triplet'"):
        build("tripplet")
    with pytest.raises(UsageError, match="did you mean 'margin'"):
        build("triplet", magrin=0.1)
    for value in ("wide", True, None):
        with pytest.raises(UsageError, match="cannot be"):
            build("triplet", margin=value)
    assert parameters("triplet") == {"margin": 0.2, "hardest": True, "warmup_epochs": 1}
