"""How long an extraction would take: a few items decoded and encoded, and the rest by the rule of three."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

from itmfeat.errors import DataError
from itmfeat_extract.stages import Maker

IMAGES, CAPTIONS = 16, 256


def estimate(maker: Maker, items: Sequence[Any], of: int, threads: int, on_cpu: bool) -> float | None:
    """Seconds for `of` items, of which `items` are a sample; None if none of them can be read.

    Decoding and forward pass run beside each other, so the slower one counts. On the CPU they share the
    cores, so both do.
    """
    with ThreadPoolExecutor(threads, "decode") as pool:
        readable = []
        for item in items[:2]:  # what is loaded or compiled at the first use is not counted
            with suppress(DataError):
                _encode(maker, maker.prepare([item], pool)())
        start = time.perf_counter()
        for prepared in [maker.prepare([item], pool) for item in items]:
            with suppress(DataError):
                readable += prepared()
        decode = time.perf_counter() - start
    if not readable:
        return None
    start = time.perf_counter()
    _encode(maker, readable)
    forward = time.perf_counter() - start
    return of / len(readable) * (decode + forward if on_cpu else max(decode, forward))


def spread(count: int, sample: int) -> list[int]:
    """At most `sample` numbers below `count`, evenly spread."""
    return list(range(0, count, -(-count // sample)))


def _encode(maker: Maker, prepared: Any) -> None:
    for value in maker.make(prepared).values():
        if isinstance(value, torch.Tensor):
            value.cpu()  # the device may still be at work
