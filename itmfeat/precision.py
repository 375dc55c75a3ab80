"""Arithmetic in true float32, where torch would take TF32 or bfloat16 for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def true_float32(*backends: Any) -> Iterator[None]:
    """The operators of some backends, as `torch.backends.cuda.matmul`, keep all bits of float32.

    A setting of the whole process: several threads would restore it for each other.
    """
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
