"""In which precision, and on how many threads, similarities are computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from itmfeat.precision import true_float32

# Scores held at once, 512 MiB of float32: COCO 5K fits, and is multiplied once for both directions.
HELD_SCORES = 2**27


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads of the CPU."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def float32(vectors: Tensor, device: torch.device) -> Tensor:
    """`vectors` (X, E) as contiguous float32 on `device`, without gradient or negative zeros."""
    return vectors.detach().to(device, torch.float32).contiguous() + 0.0


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in true float32: TF32 and bfloat16 merge scores that differ, which moves recalls."""
    backends: Any = torch.backends
    with (
        true_float32(backends.cuda.matmul, backends.mkldnn.matmul),
        torch.autocast(device.type, enabled=False),
    ):
        yield
