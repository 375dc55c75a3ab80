"""Each loss against naive loops in float64: value and gradient, ties of images, stacks, memory."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import itmfeat.losses
from itmfeat.errors import UsageError
from itmfeat.losses import LOSSES, Similarities, build, parameters, similarities
from itmfeat.losses.infonce import infonce
from itmfeat.losses.triplet import triplet

IDS = torch.tensor([4, 9, 4, 2, 7, 9, 9])


# Gradients that are not those of the value: surrogates, and weights that are constant to autograd.
DETACHED = {name for name in LOSSES if name.startswith("goal-")} | {"tal", "circle"}
# A doubtful pair loses its match only: it is still a valid negative elsewhere.
MATCH_ALONE = {"snll", "siglip", "pcmepp", "ms"}
# The confidence is a label of the equation, not a weight: a doubtful pair becomes a row with another target.
SOFT_LABELS = {"crcl", "decl", "cream"}
ALL_ONE_IMAGE = torch.tensor([5, 5, 5])
# Batches of several captions an image, of two pairs, of one image, of an image each; with a memory; in doubt.
BATCHES = [
    (ids, extra, doubt if extra else not doubt)
    for ids, doubt in [
        (IDS, True),
        (torch.tensor([3, 1]), False),
        (ALL_ONE_IMAGE, True),
        (torch.arange(8), False),
    ]
    for extra in (0, 5)
]


def batch(
    runs: int | None = None, extra: int = 0, ids: Tensor = IDS, seed: int = 0, doubt: bool = False
) -> Similarities:
    """Random similarities of a batch, with `extra` candidates from a memory behind it."""
    generator = torch.Generator().manual_seed(seed)
    size = len(ids)
    shape = (size, size) if runs is None else (runs, size, size)
    i2t = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    memory = torch.rand(*shape[:-1], extra, generator=generator, dtype=torch.float64)
    other = torch.rand(*shape[:-1], extra, generator=generator, dtype=torch.float64)
    confidence = torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
    all_ids = torch.cat([ids, torch.arange(extra) + 2])  # some of the memory shows the same images
    return Similarities(
        torch.cat([i2t, memory], -1).requires_grad_(),
        torch.cat([i2t.transpose(-1, -2), other], -1).requires_grad_(),
        ids.unsqueeze(1) == all_ids,
        confidence if doubt else None,
    )


def sure(s: Similarities, place: int) -> Tensor | float:
    """The confidence of a pair of the batch; candidates of a memory are sure."""
    return 1.0 if s.confidence is None or place >= len(s.confidence) else s.confidence[place]


Row = Callable[[Similarities, Tensor, int], Tensor | float]


def by_query(s: Similarities, cost: Row) -> Tensor:
    """1/B sum over both directions and queries of confidence times cost(s, row of similarities, query)."""
    total = torch.zeros((), dtype=torch.float64)
    for matrix in (s.i2t, s.t2i):
        for query in range(len(matrix)):
            total = total + sure(s, query) * cost(s, matrix[query], query)
    return total / len(s.i2t)


def sides(s: Similarities, query: int) -> tuple[list[int], list[int]]:
    """Matches and negatives of a query."""
    found = s.positive[query].tolist()
    return [c for c, yes in enumerate(found) if yes], [c for c, yes in enumerate(found) if not yes]


def probabilities(s: Similarities, row: Tensor, query: int, scale: float = 20.0) -> dict[int, Tensor]:
    """Softmax over the pair itself and the negatives, one by one."""
    among = [query, *sides(s, query)[1]]
    below = sum((scale * row[c]).exp() for c in among)
    return {c: (scale * row[c]).exp() / below for c in among}


def naive_triplet(margin: float = 0.2, hardest: bool = True) -> Row:
    def cost(s: Similarities, row: Tensor, query: int) -> Tensor | float:
        hinges = [margin + row[c] - s.i2t[query, query] for c in sides(s, query)[1]]
        violations = [hinge for hinge in hinges if hinge > 0]
        return (max(violations) if hardest else sum(violations)) if violations else 0.0

    return cost


def naive_infonce(s: Similarities, row: Tensor, query: int) -> Tensor:
    return -probabilities(s, row, query)[query].log() / 2


Case = tuple[Callable[[Similarities], Tensor], Callable[[Similarities], Tensor]]

CASES: list[Case] = [
    (triplet, lambda s: by_query(s, naive_triplet())),
    (lambda s: triplet(s, hardest=False, margin=0.3), lambda s: by_query(s, naive_triplet(0.3, False))),
    (build("triplet-sum"), lambda s: by_query(s, naive_triplet(hardest=False))),
    (infonce, lambda s: by_query(s, naive_infonce)),
]


def assert_equal_in_value_and_gradient(case: Case, s: Similarities) -> None:
    """The contract of every loss: it equals its loops in float64."""
    value, expected = (function(s) for function in case)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    assert_equal_in_gradient((value, expected), s)


def assert_equal_in_gradient(values: tuple[Tensor, Tensor], s: Similarities) -> None:
    mine, theirs = (
        torch.autograd.grad(value, [s.i2t, s.t2i], allow_unused=True, materialize_grads=True)
        if value.requires_grad
        else (torch.zeros_like(s.i2t), torch.zeros_like(s.t2i))  # the loops found nothing to pay for
        for value in values
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("ids", "extra", "doubt"), BATCHES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_equals_loops_in_value_and_gradient(case: int, ids: Tensor, extra: int, doubt: bool) -> None:
    assert_equal_in_value_and_gradient(CASES[case], batch(extra=extra, ids=ids, doubt=doubt))


@pytest.mark.parametrize("name", LOSSES)
def test_a_stack_equals_its_runs(name: str) -> None:
    s = batch(runs=3, extra=2, doubt=True)
    together = build(name, runs=3)(s)
    alone = [build(name)(s.run(torch.tensor(run))) for run in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_confidence_one_changes_nothing_and_zero_removes_the_pair(name: str) -> None:
    s = batch()
    certain = Similarities(s.i2t, s.t2i, s.positive, torch.ones(len(IDS), dtype=torch.float64))
    torch.testing.assert_close(build(name)(certain), build(name)(s))
    doubt = certain.confidence
    assert doubt is not None
    doubt[0] = 0
    build(name)(certain).backward()
    assert s.i2t.grad is not None
    if name not in MATCH_ALONE | SOFT_LABELS:
        assert s.i2t.grad[0].abs().sum() == 0
    if name not in SOFT_LABELS:
        assert s.i2t.grad[0, 0] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_weight_zero_leaves_a_query_out(name: str) -> None:
    """Whatever its label: here the pair is believed to be noisy, which some losses learn from."""
    s = batch(doubt=True)
    assert s.confidence is not None
    s.confidence[0] = 0
    weight = torch.ones(len(IDS), dtype=torch.float64)
    torch.testing.assert_close(build(name)(replace(s, weight=weight)), build(name)(s))
    weight[0] = 0
    i2t, t2i = s.i2t.detach().requires_grad_(), s.t2i.detach().requires_grad_()
    build(name)(replace(s, i2t=i2t, t2i=t2i, weight=weight)).backward()
    assert i2t.grad is not None
    assert i2t.grad[0, 0] == 0
    if name not in MATCH_ALONE:
        assert i2t.grad[0].abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_net_that_is_no_number_has_no_loss(name: str) -> None:
    s = batch(runs=2)
    i2t = s.i2t.detach().clone()
    i2t[0] = torch.nan
    found = build(name, runs=2)(replace(s, i2t=i2t, t2i=i2t.transpose(-1, -2)))
    assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in DETACHED])
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


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_one_image_costs_nothing_relative_and_has_no_nan(name: str) -> None:
    s = batch(runs=2, ids=ALL_ONE_IMAGE)
    value = build(name, runs=2)(s)
    assert value.isfinite().all()
    value.sum().backward()
    for matrix in (s.i2t, s.t2i):
        assert matrix.grad is None or matrix.grad.isfinite().all()
    if name not in {"snll", "siglip", "pcmepp"}:  # these also judge matches by themselves
        assert value.abs().max() == 0
        assert s.i2t.grad is not None
        assert s.i2t.grad.abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_float32_of_bfloat16_embeddings_is_close_to_float64(name: str, spread: float) -> None:
    """Heads under autocast: the rounding of the embeddings is theirs, the loss adds none that matters."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(2, 1, 16, generator=generator)  # a small spread is a collapsed start
    image, text = (base + spread * torch.randn(2, 24, 16, generator=generator) for _ in range(2))
    ids = torch.arange(24) // 2
    gradients = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.bfloat16().to(dtype).requires_grad_() for x in (image, text)]
        value = build(name, runs=2)(similarities(*inputs, ids))
        assert value.dtype is dtype
        assert value.isfinite().all()
        gradients.append(torch.autograd.grad(value.sum(), inputs))
    if spread == 1.0:  # else the hardest negative itself is a matter of rounding
        for low, high in zip(*gradients, strict=True):
            torch.testing.assert_close(low.double(), high, rtol=1e-2, atol=1e-3 * float(high.abs().max()))
    assert all(gradient.isfinite().all() for gradient in gradients[0])


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
    with pytest.raises(UsageError, match=r"unknown loss\.link of snll .afine.: did you mean .affine."):
        build("snll", link="afine")
    with pytest.raises(UsageError, match="unknown parameter of goal-con-con 'tau'"):
        build("goal-con-con", tau=1.0)
    assert parameters("triplet") == {"margin": 0.2, "hardest": True, "warmup_epochs": 1}
    assert parameters("triplet-sum") == {"margin": 0.2}


def test_the_readme_has_every_loss() -> None:
    text = (Path(itmfeat.losses.__file__).parent / "README.md").read_text()
    rows = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall("`([a-z_-]+)`", line.split("|")[1])
    }
    assert set(LOSSES) == rows
