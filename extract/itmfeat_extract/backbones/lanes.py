"""Batches on a CPU: every core takes parts of the batch and computes them alone. Pictures of unequal size.

torch's own way, all cores on one operator after the other, makes each core wait for the slowest at the end of
every operator. Beside the threads that decode pictures, or anything else on the machine, that costs most of
the time: measured at two cores with four busy threads, 10 images a second that way and 60 this way.

The size of a part is fixed, so the values do not depend on the number of cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from threading import Barrier, Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat_extract.backbones.base import Encoded, ImageBackbone

BATCH_PIXELS = 64 * 448 * 448
_lock = Lock()


def encode_in_parts(encode: Callable[..., Encoded], step: int, *batch: Tensor) -> Encoded:
    """`encode` of parts of `step` items of CPU tensors (B, ...), joined again to (B, ...)."""
    parts = list(zip(*(torch.split(tensor, step) for tensor in batch), strict=True))
    if torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        with _lock:
            pool = _lanes(torch.get_num_threads(), os.getpid())
        encoded = list(pool.map(lambda part: encode(*part), parts))
    else:  # other ways of torch to share work count their threads for the whole process
        encoded = [encode(*part) for part in parts]
    return encoded[0] if len(encoded) == 1 else joined(encoded)


def encode_pictures(
    backbone: ImageBackbone,
    pictures: list[NDArray[np.uint8]],
    encode: Callable[[Tensor], Encoded] | None = None,
) -> Encoded:
    """`encode` (the backbone's) of pictures (H, W, 3): those of equal size are one batch, nothing is padded.

    So what a picture gives does not depend on its neighbours. On the CPU batches run beside each other, since
    a batch of one would keep one core busy; elsewhere one at a time, and large pictures a few at a time.
    """
    encode = encode or backbone.encode
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(row)
    rows = [part for (high, wide, _), all_rows in groups.items() for part in _parts(all_rows, high * wide)]
    batches = [torch.from_numpy(np.stack([pictures[row] for row in part])) for part in rows]
    if len(batches) == 1:
        return encode(batches[0])
    workers = torch.get_num_threads() if backbone.placement.device.type == "cpu" else 1
    with ThreadPoolExecutor(workers, "batch") as pool:
        encoded = list(pool.map(encode, batches))
    return joined(encoded, torch.tensor(list(chain(*rows))).argsort())


def _parts(rows: list[int], pixels: int) -> list[list[int]]:
    """Pictures of so many pixels each, in batches whose activations a small GPU can hold."""
    step = max(1, BATCH_PIXELS // pixels)
    return [rows[first : first + step] for first in range(0, len(rows), step)]


def joined(parts: list[Encoded], order: Tensor | None = None) -> Encoded:
    """Batches one after another as one, then its items in another order (B,)."""

    def join(values: list[Any]) -> Tensor | None:
        if values[0] is None:
            return None
        whole = torch.cat(values)
        return whole if order is None else whole[order.to(whole.device)]

    with torch.inference_mode():
        found = {name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    vectors = found.pop("vectors")
    assert vectors is not None
    return Encoded(vectors, **found)


@cache
def _lanes(count: int, process: int) -> ThreadPoolExecutor:
    """`count` threads on each of which torch uses one thread; a forked process needs its own."""
    pool, all_here = ThreadPoolExecutor(count, "lane"), Barrier(count)

    def settle() -> None:
        # torch keeps the number twice: for this thread, and as what a thread starts with when it first asks.
        # So this one asks before its own is set, and the other is put back below.
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_here.wait()

    for future in [pool.submit(settle) for _ in range(count)]:
        future.result()
    torch.set_num_threads(count)
    return pool
