"""Search against a sorted list: through FAISS, and without it."""

import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from itmfeat import retrieval
from itmfeat.errors import DataError, UsageError
from itmfeat.retrieval import nearest, search


def integers(rows: int, dim: int, largest: int) -> Tensor:
    """Whole numbers (rows, dim), whose products are exact in any order of summation."""
    return torch.randint(-largest, largest + 1, (rows, dim)).float()


@pytest.fixture
def no_faiss(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interpreter in which importing FAISS fails."""
    retrieval.faiss_library.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    yield
    retrieval.faiss_library.cache_clear()


def sorted_list(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The oracle: a stable sort of all scores (Q, G)."""
    top = scores.sort(dim=1, descending=True, stable=True)
    return top.values[:, :k], top.indices[:, :k]


@pytest.mark.parametrize("k", [1, 10, 333])
def test_search_is_the_sorted_list(k: int) -> None:
    queries, gallery = torch.randn(21, 32), torch.randn(333, 32)
    scores, ids = search(queries, gallery, k)
    want, want_ids = sorted_list(queries @ gallery.T, k)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(scores, want)


@pytest.mark.usefixtures("no_faiss")
@pytest.mark.parametrize("k", [1, 10, 333])
def test_search_without_faiss(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "HELD_SCORES", 3000)
    queries, gallery = torch.randn(21, 32), torch.randn(333, 32)
    scores, ids = search(queries, gallery, k)
    want, want_ids = sorted_list(queries @ gallery.T, k)
    assert retrieval.faiss_library() is None
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(scores, want)


def test_faiss_and_torch_agree() -> None:
    pytest.importorskip("faiss")
    assert retrieval.faiss_library() is not None
    queries, gallery = torch.randn(50, 64), torch.randn(1500, 64)
    by_torch = nearest._by_id_where_equal(*nearest._torch_top(queries, gallery, 20))
    scores, ids = search(queries, gallery, 20)
    assert torch.equal(ids, by_torch[1])
    torch.testing.assert_close(scores, by_torch[0])


@pytest.mark.parametrize("absent", [False, True])
def test_equal_scores_stand_by_ascending_id(absent: bool, request: pytest.FixtureRequest) -> None:
    if absent:
        request.getfixturevalue("no_faiss")
    queries, gallery = integers(30, 4, 2), integers(200, 4, 2)
    scores, ids = search(queries, gallery, 40)
    want = queries @ gallery.T
    assert torch.equal(scores, sorted_list(want, 40)[0])
    assert torch.equal(scores, want.gather(1, ids))
    later = (scores[:, 1:] < scores[:, :-1]) | (ids[:, 1:] > ids[:, :-1])
    assert later.all()
    # With the whole gallery asked for, the list is the stable sort itself.
    assert torch.equal(search(queries, gallery, 200)[1], sorted_list(want, 200)[1])


def test_a_broken_faiss_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("libcublas.so.12 not found")

    retrieval.faiss_library.cache_clear()
    monkeypatch.setattr("importlib.import_module", broken)
    assert search(torch.eye(2), torch.eye(2), 1)[1].tolist() == [[0], [1]]
    monkeypatch.undo()
    retrieval.faiss_library.cache_clear()


def test_only_a_gpu_build_serves_a_gpu_and_up_to_its_limit() -> None:
    def build(gpus: int) -> ModuleType:
        module = ModuleType("faiss")
        module.__dict__["get_num_gpus"] = lambda: gpus
        return module

    cuda, cpu, mps = (torch.device(name) for name in ("cuda:0", "cpu", "mps"))
    serves = nearest._faiss_serves
    assert serves(build(1), cuda, 2048)
    assert not serves(build(1), cuda, 2049)
    assert not serves(build(0), cuda, 10)
    assert serves(build(0), cpu, 5000)
    assert not serves(build(1), mps, 10)


def test_search_takes_half_precision_and_at_most_the_gallery() -> None:
    scores, ids = search(torch.eye(3).half(), torch.eye(3).half(), 10, device="cpu")
    assert scores.shape == ids.shape == (3, 3)
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert scores.dtype == torch.float32


def test_search_refuses_a_diverged_head_and_an_empty_list() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        search(torch.eye(2), torch.full((2, 2), math.nan), 1)
    with pytest.raises(UsageError, match="at least 1"):
        search(torch.eye(2), torch.eye(2), 0)
