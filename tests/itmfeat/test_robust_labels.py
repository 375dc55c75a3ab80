"""The labels of SCC, of DECL's argmax and of CREAM's three parts, against naive simulations."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from itmfeat import robust
from itmfeat.errors import UsageError
from itmfeat.losses import Similarities
from itmfeat.robust import Method, Scores, Setting
from itmfeat.robust.cream import Cream
from itmfeat.robust.mixture import posterior

PAIRS, SIZE = 24, 6


def make(name: str, epochs: int = 15, **given: Any) -> Any:
    images = torch.arange(PAIRS) // 2
    setting = Setting(images, epochs, torch.device("cpu"), lambda: (torch.zeros(0), torch.zeros(0)))
    return robust.build(name, setting, **given)


def batches(epoch: int, nets: int) -> Iterator[tuple[Similarities, Tensor]]:
    """The batches of an epoch: similarities (nets, SIZE, SIZE) and captions (SIZE,); some share images."""
    generator = torch.Generator().manual_seed(epoch)
    for captions in torch.randperm(PAIRS, generator=generator).split(SIZE):
        i2t = 0.4 * torch.rand(nets, SIZE, SIZE, generator=generator) - 0.1
        i2t = i2t + torch.diag_embed(0.02 * (captions % 12).float())  # some pairs match better
        ids = captions // 2
        yield Similarities(i2t, i2t.transpose(-1, -2), ids.unsqueeze(1) == ids), captions


def probability(s: Similarities, net: int, place: int, scale: float = 20.0) -> float:
    """Mean of both directions, one by one."""
    found = 0.0
    for matrix in (s.i2t[net], s.t2i[net]):
        among = [c for c in range(SIZE) if c == place or not s.positive[place, c]]
        below = sum((scale * matrix[place, c]).exp() for c in among)
        found += float((scale * matrix[place, place]).exp() / below) / 2
    return found


def no_scores() -> Scores:
    raise AssertionError("a pass over the training split that nothing needs")


def scores(nets: int, seed: int = 0, calls: list[int] | None = None) -> Callable[[], Scores]:
    generator = torch.Generator().manual_seed(seed)
    softmax = torch.rand(nets, PAIRS, generator=generator) * 0.3
    softmax[:, ::2] += 2  # half of the pairs are learned badly by every net
    softmax[0, :4] = torch.tensor([2.1, 2.2, 0.1, 0.2])  # the first net differs on these
    found = Scores(softmax.flip(-1), softmax, torch.rand(nets, PAIRS, generator=generator) > 0.5)

    def read() -> Scores:
        if calls is not None:
            calls.append(seed)
        return found

    return read


def restarts(epochs: int, **given: int) -> list[int]:
    method: Method = make("scc", epochs, **given)
    return [epoch for epoch in range(epochs) if method.restarts(epoch)]


def test_scc_restarts_as_often_as_the_epochs_allow() -> None:
    assert restarts(15) == [2, 4]
    assert restarts(53, restarts=3, every=8) == [8, 16, 24]
    assert restarts(15, restarts=0) == []
    assert restarts(5) == [2]
    assert restarts(3) == []
    assert restarts(1) == []
    assert restarts(6, restarts=9) == [2]  # never less after the last one than before it


def test_scc_warms_up_in_each_round() -> None:
    for given, expected in [
        ({}, [0, 2, 4]),
        ({"every": 3, "warm": 2}, [0, 1, 3, 4, 6, 7]),
        ({"every": 2, "warm": 5}, [0, 1, 2, 3, 4, 5]),
        ({"restarts": 0, "warm": 4}, [0, 1]),
        ({"warm": 0}, []),
    ]:
        method: Method = make("scc", 15, **given)
        assert [epoch for epoch in range(15) if method.warm(epoch)] == expected


@pytest.mark.parametrize("given", [{}, {"every": 3, "warm": 2, "decay": 0.5, "floor": 0.3}, {"warm": 0}])
def test_scc_follows_the_probability_of_each_pair(given: dict[str, Any]) -> None:
    method: Method = make("scc", 8, **given)
    known = {"every": 2, "warm": 1, "decay": 0.8, "floor": 0.1} | given
    y = [1.0] * PAIRS
    for epoch in range(8):
        method.begin(epoch, no_scores)
        start = max([0, *filter(method.restarts, range(epoch + 1))])
        for s, captions in batches(epoch, 1):
            found = method.labels(s, captions, epoch)
            assert found is not None
            assert found.weight is None
            for place, caption in enumerate(captions.tolist()):
                p = probability(s, 0, place)
                if epoch - start >= known["warm"]:
                    y[caption] = known["decay"] * y[caption] + (1 - known["decay"]) * p
                y[caption] = 0.0 if y[caption] < known["floor"] else y[caption]
                assert found.soft[0, place].item() == pytest.approx(y[caption], abs=1e-5)
                if epoch == known["warm"] - 1:
                    y[caption] = p
    torch.testing.assert_close(method.state()["label"], torch.tensor([y]), rtol=0, atol=1e-5)
    assert method.split() is None
    assert len(set(y)) > PAIRS // 3  # neither all zero nor all one


def test_scc_goes_on_from_saved_labels_bit_by_bit() -> None:
    whole, first, second = (make("scc", 8) for _ in range(3))

    def train(method: Method, epochs: range) -> list[Tensor]:
        return [method.labels(s, c, epoch).soft for epoch in epochs for s, c in batches(epoch, 1)]

    expected = train(whole, range(8))
    train(first, range(3))
    saved = {name: value.clone() for name, value in first.state().items()}
    for name, value in second.state().items():
        value.copy_(saved[name])
    assert all(map(torch.equal, train(second, range(3, 8)), expected[3 * len(expected) // 8 :]))


def test_argmax_splits_anew_in_each_epoch_after_the_warm_up() -> None:
    method: Method = make("argmax")
    calls: list[int] = []
    for epoch in range(5):
        method.begin(epoch, scores(1, epoch, calls))
        s, captions = next(batches(epoch, 1))
        found = method.labels(s, captions, epoch)
        assert method.warm(epoch) == (epoch < 2)
        if epoch < 2:
            assert found is None
            assert method.split() is None
            continue
        first = scores(1, epoch)().first
        assert found is not None
        assert found.weight is None
        assert found.soft.tolist() == [[float(first[0, c]) for c in captions]]
        split = method.split()
        assert split is not None
        assert torch.equal(split, first)
    assert calls == [2, 3, 4]
    assert method.state() == {}


@pytest.mark.parametrize("epoch", [2, 3, 4, 8, 14])
def test_cream_labels_three_parts_by_the_other_net(epoch: int) -> None:
    method: Method = make("cream", 15, scale=20.0)
    method.begin(epoch, scores(2, epoch))
    w = [posterior(losses, "gmm").tolist() for losses in scores(2, epoch)().softmax]
    seen = set()
    for s, captions in batches(epoch, 2):
        found = method.labels(s, captions, epoch)
        assert found is not None
        assert found.weight is not None
        assert found.weight.shape == found.soft.shape == (2, SIZE)
        for place, c in enumerate(captions.tolist()):
            accept = [w[net][c] > 0.5 for net in (0, 1)]
            seen.add(tuple(accept))
            for net in (0, 1):
                p, other = probability(s, net, place), w[1 - net][c]
                if all(accept):
                    label, part = other + (1 - other) * p, True
                elif any(accept):
                    mean = (w[0][c] + w[1][c]) / 2
                    label, part = mean + (1 - mean) * p, epoch >= 0.25 * 15
                else:
                    label, part = (probability(s, 0, place) + probability(s, 1, place)) / 2, epoch >= 7.5
                assert found.soft[net, place].item() == pytest.approx(label, abs=1e-5)
                assert found.weight[net, place].item() == part
    assert len(seen) >= 3
    split = method.split()
    assert split is not None
    assert split.tolist() == [[w[0][c] > 0.5 and w[1][c] > 0.5 for c in range(PAIRS)]] * 2


def test_cream_waits_for_its_warm_up_and_keeps_nothing() -> None:
    method: Method = make("cream", hard_from=0.0, noisy_from=0.0)
    assert method.nets == Cream.nets == 2
    for epoch in (0, 1):
        method.begin(epoch, no_scores)
        assert method.warm(epoch)
        assert method.labels(*next(batches(epoch, 2)), epoch) is None
        assert method.split() is None
    method.begin(2, scores(2))
    assert not method.warm(2)
    found = method.labels(*next(batches(2, 2)), 2)
    assert found is not None
    assert found.weight is not None
    assert found.weight.all()
    assert method.state() == {}


def test_labels_of_a_diverged_or_constant_net_are_no_error() -> None:
    for value in (torch.nan, 1.0):
        method: Method = make("cream")
        losses = torch.full((2, PAIRS), value)
        method.begin(2, partial(Scores, losses, losses, losses > 0))
        found = method.labels(*next(batches(2, 2)), 2)
        assert found is not None
        assert found.soft.eq(1).all()


def test_unknown_parameters_are_one_sentence() -> None:
    for name, wrong, meant in [
        ("scc", "decya", "decay"),
        ("argmax", "wram", "warm"),
        ("cream", "warms", "warm"),
    ]:
        with pytest.raises(
            UsageError, match=f"unknown parameter of {name} '{wrong}': did you mean '{meant}'"
        ):
            make(name, **{wrong: 1})
    with pytest.raises(UsageError, match="at least 1, not 0"):
        make("scc", every=0)
