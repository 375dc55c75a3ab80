"""Losses that judge single pairs (SNLL, SigLIP, PCME++) or weigh many of them (multi-similarity, circle)."""

import math
from functools import partial

import pytest
import torch
from test_losses import BATCHES, Case, assert_equal_in_value_and_gradient, batch, by_query, sides, sure
from torch import Tensor
from torch.nn import functional as F

from itmfeat.losses import Similarities, build, parameters, similarities
from itmfeat.losses.snll import pcmepp, siglip, snll
from itmfeat.losses.weighting import circle, ms


def bernoulli(p: Tensor, match: bool) -> Tensor:
    return -(p if match else 1 - p).log()


def naive_snll(
    s: Similarities,
    *,
    t: float = 10.0,
    b: float | None = None,
    link: str = "sigmoid",
    reduction: str = "image",
) -> Tensor:
    rows, columns = s.i2t.shape
    b = -math.log(columns - 1) if b is None else b
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for i in range(rows):
        for j in range(columns):
            x, match = s.i2t[i, j], bool(s.positive[i, j])
            p = (1 + x) / 2 if link == "affine" else 1 / (1 + (-(t * x + b)).exp())
            found[match].append(bernoulli(p, match) * (sure(s, j) if match else 1.0))
    if reduction == "balanced":
        means = [sum(costs, torch.zeros(())) / max(1, len(costs)) for costs in found.values()]
        return (means[0] + means[1]) / 2
    total = sum(found[True] + found[False], torch.zeros((), dtype=torch.float64))
    return total / (rows if reduction == "image" else rows * columns)


def naive_pcmepp(s: Similarities, *, a: float = 5.0, c: float = 5.0, pseudo: float = 0.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for matrix in (s.i2t, s.t2i):
        for i in range(len(matrix)):
            for j in range(matrix.shape[1]):
                p = 1 / (1 + (a * 2 * (1 - matrix[i, j]) - c).exp())
                match = bool(s.positive[i, j])
                caption = j if matrix is s.i2t else i
                total = total + bernoulli(p, match) * (sure(s, caption) if match else 1.0)
                match = match or bool(matrix[i, j] >= matrix[i, i])
                total = total + pseudo * sure(s, i) * bernoulli(p, match)
    return total / s.i2t.numel()


def naive_ms(
    s: Similarities, a: float = 2.0, b: float = 50.0, level: float = 0.5, eps: float = 0.1
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for matrix in (s.i2t, s.t2i):
        for i, row in enumerate(matrix):
            matches, negatives = sides(s, i)
            if not negatives:
                continue
            farthest, hardest = min(row[k] for k in matches), max(row[n] for n in negatives)
            pull = sum((-a * (row[k] - level)).exp() for k in matches if row[k] < hardest + eps)
            push = sum((b * (row[n] - level)).exp() for n in negatives if row[n] > farthest - eps)
            total = (
                total + sure(s, i) * torch.as_tensor(1 + pull).log() / a + torch.as_tensor(1 + push).log() / b
            )
    return total / len(s.i2t)


def naive_circle(s: Similarities, row: Tensor, query: int, m: float = 0.4, gamma: float = 80.0) -> Tensor:
    matches, negatives = sides(s, query)
    push = pull = torch.zeros((), dtype=torch.float64)
    for n in negatives:
        push = push + (gamma * max(0.0, row[n].item() + m) * (row[n] - m)).exp()
    for k in matches:
        pull = pull + (-gamma * max(0.0, 1 + m - row[k].item()) * (row[k] - (1 - m))).exp()
    return (1 + push * pull).log()


CASES: dict[str, Case] = {
    "snll": (snll, naive_snll),
    "snll mean": (partial(snll, reduction="mean", bias=-2.0), partial(naive_snll, reduction="mean", b=-2.0)),
    "snll balanced": (partial(snll, reduction="balanced"), partial(naive_snll, reduction="balanced")),
    "snll affine": (partial(snll, link="affine"), partial(naive_snll, link="affine")),
    "snll affine balanced": (
        partial(snll, link="affine", reduction="balanced"),
        partial(naive_snll, link="affine", reduction="balanced"),
    ),
    "siglip": (siglip, partial(naive_snll, b=-10.0)),
    "pcmepp": (pcmepp, naive_pcmepp),
    "pcmepp pseudo": (partial(pcmepp, pseudo=0.1, scale=3.0), partial(naive_pcmepp, pseudo=0.1, a=3.0)),
    "ms": (ms, naive_ms),
    "ms wide": (partial(ms, eps=1.0, level=1.0, beta=10.0), partial(naive_ms, eps=1.0, level=1.0, b=10.0)),
    "circle": (circle, partial(by_query, cost=naive_circle)),
    "circle faces": (
        partial(circle, margin=0.25, scale=20.0),
        partial(by_query, cost=partial(naive_circle, m=0.25, gamma=20.0)),
    ),
}


@pytest.mark.parametrize(("ids", "extra", "doubt"), BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_in_value_and_gradient(case: str, ids: Tensor, extra: int, doubt: bool) -> None:
    assert_equal_in_value_and_gradient(CASES[case], batch(extra=extra, ids=ids, doubt=doubt))


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
    u, v = (F.normalize(x, dim=-1) for x in (u, v))
    logits = -5 * (u.unsqueeze(1) - v).square().sum(-1) + 5
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(snll(s, scale=10.0, bias=-5.0), expected * 6)
    torch.testing.assert_close(snll(s, scale=10.0, bias=-5.0, reduction="mean"), expected)
    torch.testing.assert_close(pcmepp(s), 2 * expected)  # in both directions
    torch.testing.assert_close(siglip(s), snll(s, scale=10.0, bias=-10.0))


def test_affine_is_finite_at_the_ends() -> None:
    s = Similarities(-torch.eye(3), -torch.eye(3), torch.eye(3, dtype=torch.bool))
    assert snll(s, link="affine").item() == pytest.approx(-math.log(1e-6) + 2 * math.log(2), rel=1e-4)
    ones = Similarities(torch.ones(3, 3), torch.ones(3, 3), s.positive)
    assert snll(ones, link="affine").isfinite()


def test_a_caption_in_doubt_is_no_match_of_any_copy_of_its_image() -> None:
    """IDS: pairs 0 and 2 show one image, so caption 0 in doubt loosens its cell in both rows."""
    s = batch()
    doubt = torch.ones(len(s.i2t), dtype=torch.float64)
    doubt[0] = 0
    for name in ("snll", "siglip", "pcmepp"):
        s.i2t.grad = s.t2i.grad = None
        build(name)(Similarities(s.i2t, s.t2i, s.positive, doubt)).backward()
        assert s.i2t.grad is not None
        assert (s.i2t.grad[:, 0] == 0).tolist() == s.positive[:, 0].tolist()


def test_learned_scalars_of_pcmepp_and_siglip() -> None:
    s = batch(runs=2)
    for name in ("pcmepp", "siglip"):
        loss = build(name, runs=2)
        torch.testing.assert_close(loss(s), build(name, runs=2, learn=False)(s))
        loss(s).sum().backward()
        assert all(p.grad is not None and p.grad.abs().min() > 0 for p in loss.parameters())
    assert list(build("snll", link="affine").parameters()) == []  # it has no temperature
    assert parameters("siglip") == {"scale": 10.0, "bias": -10.0, "learn": True}
