"""The memory of FNE against plain formulas: averages, queues, statistics, candidates, reports, restarts."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itmfeat.heads import Head
from itmfeat.loader import Batch, Side
from itmfeat.losses import Similarities, build, similarities
from itmfeat.losses.similarity import Way
from itmfeat.memory import DECAY, Memory

SIZE, INPUTS, DIM, CAPTIONS = 6, 5, 7, 40
Heads = tuple[Head, Head]
KINDS = list(product(("mean", "max", "topk", "gpo"), ("linear", "mlp")))


def make_heads(seeds: list[int], pool: str = "mean", projection: str = "linear") -> Heads:
    """Both heads of a run start equal, so that pairs are more similar than others."""
    statistics = torch.full((INPUTS,), 0.1), torch.tensor(1.5)
    image, text = (
        Head(
            INPUTS,
            [torch.Generator().manual_seed(seed) for seed in seeds],
            dim=DIM,
            pool=pool,
            projection=projection,
            dropout=0.3,
            statistics=statistics,
        )
        for _ in range(2)
    )
    return image, text


def make_batch(step: int, noises: int = 2, size: int = SIZE) -> Batch:
    """Slots of ten images; both captions of a slot lie near its image. Every third image comes twice."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randint(10, (size,), generator=random)
    code = torch.randn(10, INPUTS, generator=torch.Generator().manual_seed(99))[ids]
    image = code[None, :, None] + 0.2 * torch.randn(1, size, 3, INPUTS, generator=random)
    text = code[None, :, None] + 0.2 * torch.randn(noises, size, 3, INPUTS, generator=random)
    lengths = [torch.randint(1, 4, (n, size), generator=random) for n in (1, noises)]
    captions = torch.randint(CAPTIONS, (noises, size), generator=random)
    return Batch(ids, captions, Side(image, lengths[0], 2 * step), Side(text, lengths[1], 2 * step + 1))


TRUTH = torch.randint(10, (CAPTIONS,), generator=torch.Generator().manual_seed(5))


class Training:
    """Some runs of a stack with a memory; their heads drift from step to step."""

    def __init__(self, seeds: list[int], runs: list[int], size: int = 14, kind: tuple[str, str] = KINDS[0]):
        self.heads = make_heads(seeds, *kind)
        self.runs = torch.tensor(runs)
        self.variants = torch.tensor(seeds) % 2  # of the noise, in the whole stack
        self.memory = Memory(self.heads, self.runs, size, 0.9)

    def step(self, step: int, truth: Tensor | None = TRUTH) -> tuple[Similarities, Tensor, Tensor]:
        """The similarities with a memory, and the online embeddings of the runs before normalisation."""
        for head in self.heads:
            for value in head.parameters():
                value.data.mul_(1 + 0.01 * step).add_(0.01)
        batch = make_batch(step)
        image = self.heads[0](batch.image)[self.runs]
        text = self.heads[1](batch.text, self.variants)[self.runs]
        s = similarities(image, text, batch.image_ids)
        found = self.memory(s, image, text, batch, self.variants[self.runs], truth, self.heads)
        return found, image, text


def latest(memory: Memory) -> tuple[Tensor, Tensor]:
    assert memory.latest is not None
    return memory.latest.image, memory.latest.text


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_averages_of_their_runs(kind: tuple[str, str]) -> None:
    training = Training([3, 4, 5], [2, 0], kind=kind)
    expected: list[Tensor] = []
    for step in range(4):
        found, *_ = training.step(step)
        assert found.i2t.shape == (2, SIZE, SIZE + min(SIZE * step, 14))
        online = [value.detach()[[2, 0]] for head in training.heads for value in head.parameters()]
        expected = [
            new.clone() if step == 0 else 0.9 * old + 0.1 * new
            for old, new in zip(expected or online, online, strict=True)
        ]
        mine = [*training.memory.image.parameters(), *training.memory.text.parameters()]
        torch.testing.assert_close([value.data for value in mine], expected)
        assert not any(value.requires_grad for value in mine)
    alone = make_heads([5], *kind)  # the averages as the heads of a run by itself, without dropout
    with torch.no_grad():
        for head, average in zip(alone, (training.memory.image, training.memory.text), strict=True):
            for value, held in zip(head.parameters(), average.parameters(), strict=True):
                value.copy_(held[:1])
        batch = make_batch(3)
        text = Side(batch.text.vectors[1:], batch.text.lengths[1:])  # seed 5 takes the second noise
        image = alone[0](Side(batch.image.vectors, batch.image.lengths))
        wanted = [normalize(x, dim=-1)[0] for x in (image, alone[1](text))]
    torch.testing.assert_close([x[0] for x in latest(training.memory)], wanted)


def test_candidates_are_the_batch_and_the_queue_in_both_directions() -> None:
    """A queue of 14 takes batches of 6: it wraps in the third."""
    training = Training([0, 1], [0, 1])
    memory, old = training.memory, []
    for step in range(6):
        held = [(*x, ids) for *x, ids in old]
        found, image, text = training.step(step)
        new = latest(memory)
        ids = make_batch(step).image_ids
        order = torch.arange(SIZE * step)
        places = torch.full((14,), -1)
        places[order % 14] = order  # later ones overwrite
        kept = places[places >= 0]
        before = [
            torch.cat([x[way] for x in held], 1)[:, kept] if held else new[way][:, :0] for way in (0, 1)
        ]
        for query, dense, way in ((image, found.i2t, 1), (text, found.t2i, 0)):
            candidates = torch.cat([new[way], before[way]], 1)
            torch.testing.assert_close(dense, normalize(query, dim=-1).detach() @ candidates.mT)
            assert not dense.requires_grad
        all_ids = torch.cat([ids, torch.cat([x[2] for x in held])[kept] if held else ids[:0]])
        assert torch.equal(found.positive, ids.unsqueeze(1) == all_ids)
        assert found.draw_seed == 2 * step
        old.append((*new, ids))
    assert memory.filled == 14


def test_a_batch_larger_than_the_queue_leaves_its_last_pairs() -> None:
    training = Training([0], [0], size=4)
    training.step(0)
    image, _ = latest(training.memory)
    found, *_ = training.step(1)
    assert found.i2t.shape == (1, SIZE, SIZE + 4)
    torch.testing.assert_close(training.memory.images, image[:, -4:])


@pytest.mark.parametrize("way", ["image", "text"])
def test_a_pick_has_the_value_and_the_gradient_of_the_dense_product(way: Way) -> None:
    training = Training([0, 1, 2], [2, 1])
    for step in range(3):
        training.step(step)
    candidates = training.memory
    found, *online = training.step(3)
    query = online[way == "text"]
    new = latest(candidates)[way == "image"]
    queue = candidates.texts if way == "image" else candidates.images
    everything = torch.cat([new, queue[:, : candidates.filled]], 1).clone()
    index = torch.randint(found.i2t.shape[-1], (2, SIZE), generator=torch.Generator().manual_seed(0))
    dense = normalize(query, dim=-1) @ everything.mT
    expected = dense.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    mine = found.pick(way, index)
    torch.testing.assert_close(mine, expected)
    cost = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((x * cost).sum(), query, retain_graph=True)[0] for x in (mine, expected)]
    torch.testing.assert_close(*gradients)


def naive_moments(values: list[list[float]]) -> tuple[float, float]:
    """Mean and variance of all values so far, those of each batch fading with every later one."""
    values = [batch for batch in values if batch]
    weights = [DECAY ** (len(values) - 1 - age) for age in range(len(values))]
    pairs = [(w, x) for w, batch in zip(weights, values, strict=True) for x in batch]
    total = sum(w for w, _ in pairs) or 1.0
    mean = sum(w * x for w, x in pairs) / total
    return mean, sum(w * (x - mean) ** 2 for w, x in pairs) / total


def test_statistics_equal_a_naive_running_computation() -> None:
    training = Training([0, 1], [0, 1])
    matches: list[list[list[float]]] = [[], []]
    others: list[list[list[float]]] = [[], []]
    for step in range(8):
        found, image, text = training.step(step)
        online = similarities(image, text).i2t.tolist()
        ids = make_batch(step).image_ids.tolist()
        assert found.statistics is not None
        for run in range(2):
            match, other = [], []
            for i in range(SIZE):
                strange = [j for j in range(SIZE) if ids[j] != ids[i]]
                row = [online[run][i][j] for j in strange]
                column = [online[run][j][i] for j in strange]
                if strange and online[run][i][i] > max(row + column):
                    match.append(online[run][i][i])
                    other += [max(row), max(column)]
            matches[run].append(match)
            others[run].append(other)
            mine = [float(values[run]) for values in found.statistics]
            wanted = [*naive_moments(matches[run]), *naive_moments(others[run])]
            assert mine[:4] == pytest.approx(wanted, abs=1e-5)
            assert mine[4] == sum(map(len, matches[run]))
    assert sum(map(len, matches[0])) > 8


def test_no_sure_match_leaves_the_statistics_as_they_were() -> None:
    training = Training([0], [0])
    for step in range(3):
        training.step(step)
    before = training.memory.moments.clone(), training.memory.count.clone()
    i2t = torch.eye(SIZE).roll(1, 0).unsqueeze(0)
    training.memory._observe(Similarities(i2t, i2t.mT, torch.eye(SIZE, dtype=torch.bool)))
    one_image = torch.ones(SIZE, SIZE, dtype=torch.bool)
    training.memory._observe(Similarities(torch.eye(SIZE).unsqueeze(0), i2t, one_image))
    torch.testing.assert_close(
        (training.memory.moments[..., 1], training.memory.count), (before[0][..., 1], before[1])
    )


def losses(training: Training, steps: range) -> list[Tensor]:
    loss = build("fne", start=4, prior=0.2, runs=len(training.runs))
    return [loss(training.step(step)[0]).detach() for step in steps]


def test_a_stack_equals_its_runs() -> None:
    together = losses(Training([0, 1, 2], [0, 1, 2]), range(6))
    in_parts = [losses(Training([0, 1, 2], runs), range(6)) for runs in ([0], [2, 1])]
    for step, value in enumerate(together):
        parts = torch.cat([in_parts[0][step], in_parts[1][step].flip(0)])
        torch.testing.assert_close(value, parts)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_restored_memory_goes_on_equally(steps: int) -> None:
    first, second = (Training([0, 1, 2], [2, 0], kind=("gpo", "mlp")) for _ in range(2))
    losses(first, range(steps))
    losses(second, range(20, 20 + 3))  # something else, to be overwritten
    for run in range(2):
        state = first.memory.state(run)
        shapes = {name: value.shape for name, value in second.memory.state(run).items()}
        assert {name: value.shape for name, value in state.items()} == shapes
        second.memory.restore(run, {name: value.clone() for name, value in state.items()})
    for mine, theirs in zip(second.heads, first.heads, strict=True):
        mine.load_state_dict(theirs.state_dict())
    going_on = range(steps, steps + 3)
    for expected, value in zip(losses(first, going_on), losses(second, going_on), strict=True):
        assert torch.equal(value, expected)
    assert first.memory.report() == second.memory.report()


def test_a_saved_state_does_not_change_what_follows() -> None:
    plain, saved = Training([0], [0]), Training([0], [0])
    expected = losses(plain, range(4))
    found = []
    for step in range(4):
        found += losses(saved, range(step, step + 1))
        saved.memory.state(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_report_counts_false_negatives() -> None:
    training = Training([0, 1], [0, 1])
    counts = torch.zeros(2, 2)
    history: list[tuple[Tensor, Tensor]] = []
    for step in range(5):
        found, *_ = training.step(step)
        batch = make_batch(step)
        own = TRUTH[batch.captions]  # (2, B): the first run takes the first noise
        size = training.memory.filled
        ids = torch.cat([batch.image_ids, training.memory.ids[:size]])
        true = torch.cat([own, training.memory.true[:, :size]], 1)
        random = torch.Generator().manual_seed(step)
        for way in ("image", "text"):
            index = torch.randint(len(ids), (2, SIZE), generator=random)
            found.pick(way, index)
            for run, i in product(range(2), range(SIZE)):
                k = int(index[run, i])
                if ids[k] == batch.image_ids[i]:
                    continue
                image, caption = (
                    (batch.image_ids[i], true[run, k]) if way == "image" else (ids[k], own[run, i])
                )
                counts[run] += torch.tensor([float(image == caption), 1.0])
        history.append((batch.image_ids, own))
    queued = torch.cat([ids for ids, _ in history[:-1]]), torch.cat([own for _, own in history[:-1]], 1)
    order = torch.arange(SIZE * 4)
    places = torch.full((14,), -1)
    places[order % 14] = order
    assert torch.equal(training.memory.ids, queued[0][places])
    assert torch.equal(training.memory.true, queued[1][:, places])
    report = training.memory.report()
    assert counts[:, 0].min() > 0
    for run in range(2):
        assert report[run]["false_negatives"] == pytest.approx(float(counts[run, 0] / counts[run, 1]))
        assert report[run]["mean_match"] > report[run]["mean_negative"]
    assert all("false_negatives" not in facts for facts in training.memory.report())


def test_without_the_truth_nothing_is_reported_of_it() -> None:
    training = Training([0], [0])
    assert training.memory.report() == [{}]
    found, *_ = training.step(0, truth=None)
    build("fne", runs=1)(found).sum().backward()
    assert "false_negatives" not in training.memory.report()[0]


def test_under_autocast_all_but_the_heads_is_float32() -> None:
    training = Training([0, 1], [1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step in range(3):
            found, image, _ = training.step(step)
    assert image.dtype is torch.bfloat16
    assert {x.dtype for x in (found.i2t, found.t2i, *latest(training.memory))} == {torch.float32}
    assert all(value.dtype is torch.float32 for value in training.memory.parameters())
    value = build("fne", runs=2)(found)
    value.sum().backward()
    assert value.dtype is torch.float32
    weight = training.heads[0].linear.weight.grad
    assert weight is not None
    assert math.isfinite(float(weight.sum()))
    assert weight.abs().max() > 0
