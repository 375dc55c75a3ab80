"""Where a forward pass runs and how exactly; pixels in, features out."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itmfeat.errors import UsageError, unknown
from itmfeat.precision import true_float32
from itmfeat_extract.backbones.base import Encoded
from itmfeat_extract.backbones.lanes import encode_in_parts
from itmfeat_extract.backbones.preprocess import Preprocessing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """A device, the precision of the forward pass on it, and whether torch.compile makes it."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False

    @property
    def dtype_name(self) -> str:
        """As in a fingerprint: `float32`, not `torch.float32`."""
        return str(self.dtype).removeprefix("torch.")

    def ready(self, model: Any, dynamic: bool = False) -> Any:
        """A module, moved here; what is to be compiled is so at its first batch, which takes that long.

        A shape of inputs is a kernel of its own, so that values do not depend on what came before; where
        shapes are many, `dynamic` makes one for all.
        """
        model = model.to(self.device)
        if self.compiled:
            model.compile(dynamic=dynamic)
        return model

    def encode(self, forward: Callable[..., Encoded], cpu_step: int, *batch: Tensor) -> Encoded:
        """`forward` of tensors (B, ...): on a CPU in parts of `cpu_step` items, elsewhere at once."""
        if self.device.type == "cpu":
            return encode_in_parts(forward, cpu_step, *(tensor.cpu() for tensor in batch))
        backends: Any = torch.backends
        # TF32 is their default on CUDA; torch wants the two alike when it asks for one.
        with true_float32(backends.cudnn.conv, backends.cudnn.rnn):
            return forward(*batch)

    def autocast(self) -> AbstractContextManager[None]:
        """Half precision where it is safe: residual streams and layer norms of transformers stay float32."""
        half = self.dtype != torch.float32
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, dtype=self.dtype if half else torch.bfloat16, enabled=half
        )
        return context


def place(device: str, dtype: str | None, compiled: bool = False) -> Placement:
    """`auto` takes the fastest device there is; the default precision is float32, on CUDA float16.

    `compiled` where something is there to compile with.

    `cudnn.benchmark` stays off: it picks kernels by a race, so an extraction that was interrupted would go
    on with other roundings.
    """
    target = torch.device(_fastest()) if device == "auto" else _device(device)
    if dtype is None:
        dtype = "float16" if target.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise unknown("precision", dtype, list(DTYPES))
    if target.type == "cpu" and dtype == "float16":
        raise UsageError("float16 forward passes need a GPU: on the CPU take bfloat16 or float32")
    return Placement(target, DTYPES[dtype], compiled and not no_compiler(target))


def no_compiler(device: torch.device) -> str:
    """Why torch.compile has nothing to work with; empty where it has."""
    if device.type == "cpu":
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        return "" if shutil.which(name) else f"there is no compiler {name} here"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return ""


def _fastest() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"no device {name!r} here: take cpu, or auto for the best there is") from error
    return device


class Normaliser:
    """uint8 pixels to what a network was trained on, on its device."""

    def __init__(self, preprocessing: Preprocessing, placement: Placement) -> None:
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self._device = placement.device
        # One multiplication and one addition an element, rounded once.
        self._scale = (preprocessing.rescale / std).float().to(placement.device).view(1, 3, 1, 1)
        self._shift = (-mean / std).float().to(placement.device).view(1, 3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, 3) in uint8 -> (B, 3, H, W) in float32, in channels-last memory as they came."""
        pixels = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return torch.addcmul(self._shift, pixels.float(), self._scale)


def readable(features: Tensor) -> Tensor:
    """Any shape, unchanged but for bfloat16, which numpy does not know: it becomes float32."""
    return features.float() if features.dtype == torch.bfloat16 else features
