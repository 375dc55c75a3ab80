"""Batches in parts on a CPU: the same values whatever the number of cores, and torch left as it was."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from itmfeat_extract.backbones import Encoded
from itmfeat_extract.backbones.lanes import encode_in_parts

openmp = pytest.mark.skipif(
    not torch.backends.openmp.is_available(), reason="torch shares work by other means than OpenMP here"
)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def double(x: Tensor, y: Tensor) -> Encoded:
    return Encoded(x * y[:, None, None], (x * y[:, None, None]).sum(1))


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_parts_are_joined_in_order(size: int) -> None:
    x, y = torch.randn(size, 2, 5), torch.arange(size)
    found, expected = encode_in_parts(double, 3, x, y), double(x, y)
    assert found.pooled is not None
    assert torch.equal(found.vectors, expected.vectors)
    assert torch.equal(found.pooled, expected.pooled)


def test_nothing_pooled_stays_nothing() -> None:
    found = encode_in_parts(lambda x: Encoded(x, None), 2, torch.randn(5, 2, 2))
    assert found.pooled is None


@openmp
@pytest.mark.parametrize("count", [1, 3])
def test_each_part_has_one_thread_and_torch_keeps_its_own(count: int, threads: int) -> None:
    torch.set_num_threads(count)
    found = encode_in_parts(
        lambda x: Encoded(x, torch.tensor([torch.get_num_threads()])), 1, torch.randn(7, 1, 1)
    )
    assert found.pooled is not None
    assert found.pooled.tolist() == [1] * 7
    assert torch.get_num_threads() == count


@openmp
def test_values_do_not_depend_on_the_number_of_cores(threads: int) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(333, 512), nn.GELU(), nn.Linear(512, 77)).requires_grad_(False)
    x = torch.randn(40, 9, 333)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(encode_in_parts(lambda part: Encoded(layers(part), None), 8, x).vectors)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_come_through() -> None:
    def fail(x: Tensor) -> Encoded:
        raise ValueError(f"part of {len(x)}")

    with pytest.raises(ValueError, match="part of 2"):
        encode_in_parts(fail, 2, torch.zeros(4, 1, 1))
