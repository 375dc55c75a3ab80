"""One range of an unfinished feature file, filled by whoever has its values: this process or another.

`FeatureWriter.slot` says where the bytes belong, `fill` puts them there and returns their checksums, and
`FeatureWriter.log` notes that they are there. Only the last needs the writer, so the other two may happen in
another process, or on another machine that sees the same file.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itmfeat.cache import seal
from itmfeat.cache.journal import Sums
from itmfeat.errors import ItmfeatError, disk_full

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "int8": torch.int8, "int32": torch.int32}


@dataclass(frozen=True)
class Slot:
    """Where the bytes of a range lie; small and picklable."""

    path: Path  # of the finished file
    part: Path  # of the file as it is now
    backbone: str
    index: int
    items: range
    dtype: str  # of the features
    places: dict[str, tuple[int, int, str]]  # payload -> first byte, byte behind the last, dtype


Values = NDArray[Any] | Tensor


def quantize(vectors: Values) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Vectors (V, D) as int8 (V, D) and a scale a vector (V,), so that vector = int8 * scale.

    On the CPU: a GPU divides by a number as it multiplies, which rounds otherwise.
    """
    wide = _tensor(vectors).cpu().float()
    scales = wide.abs().amax(dim=1) / 127
    steps = wide / torch.where(scales > 0, scales, 1).unsqueeze(1)
    return steps.round_().to(torch.int8).numpy(), scales.numpy()


def fill(slot: Slot, **payloads: Values) -> Sums:
    """Write all items of a range in place and return its checksums; payloads as `rounded` takes them."""
    return store(slot, rounded(slot, **payloads))


def rounded(slot: Slot, **payloads: Values) -> dict[str, NDArray[Any]]:
    """Payloads in the dtypes of the file; tensors become narrow where they are, before they are fetched.

    They are `features` (vectors, D), and `pooled`, `boxes`, `scores` if any. Features of int8 may come with
    their `scales`, as they are stored.
    """
    if slot.dtype == "int8" and "scales" not in payloads:
        payloads["features"], payloads["scales"] = quantize(payloads["features"])
    return {
        name: _narrow(payloads[name], np.dtype(dtype), slot) for name, (_, _, dtype) in slot.places.items()
    }


def store(slot: Slot, payloads: dict[str, NDArray[Any]]) -> Sums:
    """Write what `rounded` gave in place and return its checksums."""
    sums = {}
    # Opened for each range: closing it is what makes a network file system hand the bytes to the others.
    descriptor = os.open(slot.part, os.O_WRONLY)
    try:
        for name, (start, stop, _) in slot.places.items():
            data = payloads[name]
            if data.nbytes != stop - start:
                raise ValueError(f"{name} of range {slot.index} has {data.nbytes} bytes, not {stop - start}")
            raw = data.reshape(-1).view(np.uint8).data
            write_at(descriptor, raw, start, slot.path)
            sums[name] = seal.checksum(raw).hex()
    finally:
        os.close(descriptor)
    return sums


def write_at(descriptor: int, raw: memoryview, position: int, path: Path) -> None:
    """All bytes to a place in the unfinished file of `path`; an ItmfeatError if its disk is full."""
    try:
        while raw:
            written = os.pwrite(descriptor, raw, position)
            raw, position = raw[written:], position + written
    except OSError as error:
        raise disk_full(error, path, ", it goes on from here") or error from None


def _narrow(values: Values, dtype: np.dtype[Any], slot: Slot) -> NDArray[Any]:
    """Values in the dtype of the file; an error if it cannot hold them, or if they are no numbers."""
    wide = _tensor(values)
    if wide.numel() and dtype.kind == "f":
        limit = torch.finfo(TORCH_DTYPES[str(dtype)]).max
        low, high = (float(each) for each in wide.aminmax())  # a half tensor would round the limit
        if not (-limit <= low and high <= limit):  # false for NaN
            raise ItmfeatError(
                f"{slot.backbone} gave values that {dtype} cannot hold in items {slot.items.start} to "
                f"{slot.items.stop - 1}; extract with --dtype float32, or look at those items"
            )
    return wide.to(TORCH_DTYPES[str(dtype)]).cpu().contiguous().numpy()


def _tensor(values: Values) -> Tensor:
    """For torch's arithmetic: NumPy's of float16 is not vectorised."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
