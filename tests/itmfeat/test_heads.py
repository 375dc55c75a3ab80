"""Heads: poolings against loops, GPO against torch's own GRU, stacks against single runs."""

import pytest
import torch
from torch import Tensor, nn

from itmfeat.heads import Head, pooling
from itmfeat.heads.gpo import HIDDEN, POSITION_DIM, TEMPERATURE, PositionWeights, position_codes
from itmfeat.heads.projected_max import projected_max
from itmfeat.loader import Side

LENGTHS = torch.tensor([4, 1, 3])
POOLS = ["mean", "max", "topk", "gpo"]


def vectors(runs: int = 1, dim: int = 6) -> Tensor:
    x = torch.randn(runs, 3, 4, dim, generator=torch.Generator().manual_seed(0))
    return x.masked_fill(~pooling.inside(LENGTHS, 4).unsqueeze(-1), 0)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_poolings_equal_loops_over_the_real_vectors() -> None:
    x = vectors()[0]
    for item, length in enumerate(LENGTHS):
        real = x[item, :length]
        torch.testing.assert_close(pooling.mean(x, LENGTHS)[item], real.mean(0))
        best = real.sort(0, descending=True).values[:2].mean(0)
        torch.testing.assert_close(pooling.topk(x, LENGTHS, 2)[item], best)
        weights = torch.zeros(3, 4)
        weights[item, :length] = torch.arange(1.0, length + 1)
        expected = (real.sort(0, descending=True).values * weights[item, :length, None]).sum(0)
        torch.testing.assert_close(pooling.weighted(x, LENGTHS, weights)[item], expected)


@pytest.mark.parametrize("source", [[0, 0, 0], [1, 0, 1]])
def test_projected_max_equals_a_loop(source: list[int]) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 6, generator=draw)  # the padding too
    lengths = LENGTHS.expand(2, -1) - torch.tensor([[0, 0, 0], [1, 0, 1]])
    weight, bias, grad = (
        torch.randn(shape, generator=draw).requires_grad_() for shape in ((3, 6, 5), (3, 5), (3, 3, 5))
    )
    expected = torch.stack(
        [
            torch.stack(
                [(x[n, i, :end] @ weight[run] + bias[run]).amax(0) for i, end in enumerate(lengths[n])]
            )
            for run, n in enumerate(source)
        ]
    )
    found = projected_max(x, lengths, source, weight, bias)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected, (weight, bias), grad)
    torch.testing.assert_close(torch.autograd.grad(found, (weight, bias), grad), theirs)


def test_an_item_without_vectors_teaches_nothing() -> None:
    weight = torch.ones(1, 2, 2, requires_grad=True)
    lengths = torch.tensor([[0]])
    projected_max(torch.ones(1, 1, 3, 2), lengths, [0], weight, torch.zeros(1, 2)).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_gpo_equals_torch_gru() -> None:
    stacked = PositionWeights(generators(1, 2))
    weights = stacked(LENGTHS.unsqueeze(0))  # (K, 1, B, L)
    for run in range(2):
        gru = nn.GRU(POSITION_DIM, HIDDEN, batch_first=True, bidirectional=True)
        with torch.no_grad():
            for way, suffix in (("forward", ""), ("backward", "_reverse")):
                for name, theirs in (("input", "ih"), ("hidden", "hh")):
                    weight = getattr(stacked, f"{way}_{name}")[run]
                    getattr(gru, f"weight_{theirs}_l0{suffix}").copy_(weight)
                    bias = getattr(stacked, f"{way}_{name}_bias")[run]
                    getattr(gru, f"bias_{theirs}_l0{suffix}").copy_(bias)
        for item, length in enumerate(LENGTHS.tolist()):
            states = gru(position_codes(length).unsqueeze(0))[0][0]
            both = (states[:, :HIDDEN] + states[:, HIDDEN:]) / 2
            scores = (both @ stacked.out[run].T).squeeze(1) / TEMPERATURE
            torch.testing.assert_close(weights[run, 0, item, :length], scores.softmax(0))
            assert weights[run, 0, item, length:].abs().sum() == 0


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_run_in_a_stack_equals_the_run_alone(pool: str, projection: str) -> None:
    side = Side(vectors(), LENGTHS.unsqueeze(0), drop_seed=5)
    given = {"dim": 5, "pool": pool, "projection": projection, "topk": 2, "dropout": 0.3}
    stack = Head(6, generators(7, 8, 9), **given, hidden_dropout=0.3)
    for run, seed in enumerate((7, 8, 9)):
        alone = Head(6, generators(seed), **given, hidden_dropout=0.3)(side)
        torch.testing.assert_close(stack(side)[run], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_each_run_takes_its_own_variant(pool: str) -> None:
    x = vectors(2)
    head = Head(6, generators(1, 2, 3), dim=5, pool=pool)
    lengths = torch.stack([LENGTHS, LENGTHS.flip(0)])
    mixed = head(Side(x, lengths), torch.tensor([1, 0, 1]))
    for run, variant in enumerate((1, 0, 1)):
        shared = head(Side(x[variant : variant + 1], lengths[variant : variant + 1]))
        torch.testing.assert_close(mixed[run], shared[run], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_changes_nothing(pool: str) -> None:
    head = Head(6, generators(1), dim=5, pool=pool, statistics=(torch.ones(6), torch.tensor(2.0)))
    longer = torch.cat([vectors(), torch.full((1, 3, 5, 6), 9.0)], 2)
    short = head(Side(vectors(), LENGTHS.unsqueeze(0)))
    torch.testing.assert_close(head(Side(longer, LENGTHS.unsqueeze(0))), short)


def test_no_dropout_without_a_seed_and_the_same_with_the_same() -> None:
    head = Head(6, generators(1), dim=5, pool="mean", projection="mlp", dropout=0.5, hidden_dropout=0.5)
    side = Side(vectors(), LENGTHS.unsqueeze(0))
    assert torch.equal(head(side), head(side))
    seeded = Side(side.vectors, side.lengths, 1)
    assert torch.equal(head(seeded), head(seeded))
    assert not torch.equal(head(seeded), head(side))


def test_dropout_takes_a_channel_from_all_vectors_of_an_item() -> None:
    """So a head that averages regions first sees the same dropout as one that averages them last."""
    head = Head(6, generators(1), dim=5, pool="mean", dropout=0.5)
    side = Side(vectors(), LENGTHS.unsqueeze(0), drop_seed=3)
    means = pooling.mean(side.vectors, side.lengths).unsqueeze(2)
    pooled = Side(means, torch.ones(1, 3, dtype=torch.int64), drop_seed=3)
    torch.testing.assert_close(head(side), head(pooled))
