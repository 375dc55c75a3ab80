"""Exact lists, R-precision and mAP@R against plain loops, truth tables, and the loops of eccv-caption."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmfeat.errors import DataError
from itmfeat.retrieval import Relevance, first, precision_at_r, ranking
from itmfeat.retrieval.relevance import longest, score


def order(scores: Tensor) -> list[list[int]]:
    """Each row of scores (Q, G) by a stable sort that has Python's own comparisons."""
    return [sorted(range(len(row)), key=lambda item: -row[item]) for row in scores.tolist()]


def plain(lists: list[list[int]], relevant: dict[int, set[int]]) -> dict[str, float]:
    """All metrics by their definition, one query and one rank at a time."""
    sums: dict[str, float] = defaultdict(float)
    for query, wanted in relevant.items():
        ranked, total = lists[query], len(wanted)
        for k in (1, 5, 10):
            sums[f"r{k}"] += any(item in wanted for item in ranked[:k])
        sums["r_precision"] += sum(item in wanted for item in ranked[:total]) / total
        for rank, item in enumerate(ranked[:total], start=1):
            if item in wanted:
                sums["map_at_r"] += sum(other in wanted for other in ranked[:rank]) / rank / total
    return {key: 100 * value / len(relevant) for key, value in sums.items()}


def relevance_of(relevant: dict[int, set[int]]) -> Relevance:
    pairs = [(query, item) for query, wanted in relevant.items() for item in wanted]
    columns = torch.tensor(pairs).T
    return Relevance(columns[0], columns[1])


def drawn(queries: int, items: int, most: int) -> dict[int, set[int]]:
    """One to `most` relevant items for two thirds of the queries."""
    asked = torch.randperm(queries)[: math.ceil(queries * 2 / 3)].tolist()
    return {
        query: set(torch.randint(items, (int(torch.randint(1, most + 1, ())),)).tolist()) for query in asked
    }


def integers(rows: int, dim: int, largest: int) -> Tensor:
    """Whole numbers (rows, dim), whose products are exact in any order of summation."""
    return torch.randint(-largest, largest + 1, (rows, dim)).float()


def check(queries: Tensor, gallery: Tensor, relevant: dict[int, set[int]]) -> None:
    lists = order(queries.double() @ gallery.double().T)
    for k in (1, 3, len(gallery), len(gallery) + 5):
        assert first(queries, gallery, k).tolist() == [ranked[:k] for ranked in lists]
    got = precision_at_r(queries, gallery, relevance_of(relevant))
    assert got["queries"] == len(relevant)
    for key, value in plain(lists, relevant).items():
        assert got[key] == pytest.approx(value)  # type: ignore[literal-required]


@pytest.fixture(params=[False, True])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual blocks, and some that no size in these tests is a multiple of."""
    if request.param:
        monkeypatch.setattr(ranking, "HELD_SCORES", 1500)
        monkeypatch.setattr(ranking, "COMPARED_SCORES", 400)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("largest", [0, 1, 3, 1000])  # constant, many ties, some, next to none
@pytest.mark.parametrize("most", [1, 7, 60])
def test_lists_and_metrics_equal_plain_loops(largest: int, most: int) -> None:
    check(integers(37, 5, largest), integers(101, 5, largest), drawn(37, 101, most))


@pytest.mark.usefixtures("blocks")
def test_duplicated_vectors_tie() -> None:
    queries, gallery = torch.randn(40, 129), torch.randn(70, 129)
    query_copy, copy = torch.randint(20, (40,)), torch.randint(15, (70,))
    scores = (queries.double() @ gallery.double().T)[query_copy][:, copy]
    got = first(queries[query_copy], gallery[copy], 12)
    assert got.tolist() == [ranked[:12] for ranked in order(scores)]


@settings(max_examples=60)
@given(st.data())
def test_metrics_equal_plain_loops_on_anything(data: st.DataObject) -> None:
    sizes = st.integers(1, 8)
    queries, items, dim = data.draw(sizes), data.draw(sizes), data.draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    rows = [data.draw(st.lists(vector, min_size=n, max_size=n)) for n in (queries, items)]
    wanted = st.sets(st.integers(0, items - 1), min_size=1)
    relevant = data.draw(st.dictionaries(st.integers(0, queries - 1), wanted, min_size=1))
    check(torch.tensor(rows[0]).float(), torch.tensor(rows[1]).float(), relevant)


def test_a_truth_table_by_hand() -> None:
    lists = torch.tensor([[3, 0, 1, 2], [0, 1, 2, 3], [2, 3, 0, 1]])
    # Query 0: 3 and 1 fit, found at ranks 1 and 3; R = 2: half of the first two, AP (1/1) / 2.
    # Query 1: 1, 2 and 3 fit, at ranks 2 to 4; R = 3: two of three, AP (1/2 + 2/3) / 3.
    # Query 2: none.
    relevance = Relevance(torch.tensor([1, 0, 1, 0, 1]), torch.tensor([3, 3, 2, 1, 1]))
    assert score(lists, relevance, 4) == {
        "queries": 2,
        "r1": 50.0,
        "r5": 100.0,
        "r10": 100.0,
        "r_precision": pytest.approx(100 * (1 / 2 + 2 / 3) / 2),
        "map_at_r": pytest.approx(100 * (1 / 2 + (1 / 2 + 2 / 3) / 3) / 2),
    }


def test_a_pair_that_stands_twice_counts_once() -> None:
    once = Relevance(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]))
    twice = Relevance(torch.tensor([0, 1, 0, 0, 1]), torch.tensor([1, 0, 2, 1, 0]))
    queries, gallery = torch.randn(2, 4), torch.randn(3, 4)
    assert precision_at_r(queries, gallery, once) == precision_at_r(queries, gallery, twice)


def test_items_that_the_gallery_lacks_are_never_found() -> None:
    lists = torch.tensor([[0, 1, 2]])
    found = score(lists, Relevance(torch.tensor([0, 0, 0]), torch.tensor([0, -1, -2])), 3)
    assert found["r_precision"] == found["map_at_r"] == pytest.approx(100 / 3)
    lost = score(lists, Relevance(torch.tensor([0]), torch.tensor([-1])), 3)
    assert (lost["r10"], lost["map_at_r"]) == (0.0, 0.0)


def test_nan_counts_as_ahead_and_is_never_right() -> None:
    queries, gallery = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    gallery[1] = math.nan
    assert first(queries, gallery, 3).tolist() == [[-1, 0, 2], [-1, 2, 0], [-1, 3, 0]]
    found = precision_at_r(queries, gallery, Relevance(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])))
    assert (found["r1"], found["map_at_r"]) == (0.0, 0.0)
    assert found["r5"] == pytest.approx(200 / 3)  # the NaN of query 0 is not found at all
    diverged = torch.full((3, 3), math.nan)
    assert precision_at_r(diverged, gallery, Relevance(torch.arange(3), torch.arange(3)))["r10"] == 0.0


@pytest.mark.parametrize("shape", [(7, 4985, 513), (300, 301, 1)])
def test_constant_embeddings_are_listed_by_index(shape: tuple[int, int, int]) -> None:
    queries, items, dim = shape
    vector = torch.randn(1, dim)
    got = first(vector.repeat(queries, 1), vector.repeat(items, 1), 48)
    assert torch.equal(got, torch.arange(48).repeat(queries, 1))


def test_relevance_that_does_not_fit_is_refused() -> None:
    lists = torch.tensor([[0, 1], [1, 0]])
    for query, item in ((2, 0), (-1, 0), (0, 2)):
        with pytest.raises(DataError, match="outside the 2 queries or the 2 items"):
            score(lists, Relevance(torch.tensor([query]), torch.tensor([item])), 2)
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(DataError, match="no query has a relevant item"):
        precision_at_r(torch.eye(2), torch.eye(2), Relevance(none, none))


def test_lists_are_as_long_as_the_metrics_need() -> None:
    assert longest(Relevance(torch.tensor([0, 0]), torch.tensor([1, 2]))) == 10
    assert longest(Relevance(torch.zeros(48, dtype=torch.int64), torch.arange(48))) == 48
