"""Convolutions for inference: batch norm and padding folded in, activation and residual fused.

On the CPU each convolution, its ReLU6 and its residual sum are one oneDNN call on weights that were laid out
for it beforehand: the operators that torch's own compiler emits, without its minute of compiling. Elsewhere
the same list of convolutions runs through plain torch.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itmfeat_extract.backbones.placement import Placement


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with what stood around it folded in."""

    weight: Tensor  # (out channels, in channels / groups, k, k)
    bias: Tensor  # (out channels,)
    stride: int
    padding: int  # the same on all four sides
    groups: int
    relu6: bool = False
    opens: bool = False  # its input is kept as the residual of the block that begins here
    closes: bool = False  # the kept input is added to its output


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, before: int = 0, after: int = 0) -> Convolution:
    """One convolution for zero padding (`before` and `after` on both axes), convolution and batch norm.

    With more padding after than before (as TensorFlow has it at stride 2) the kernel grows by leading zeros
    instead, so that symmetric padding reads the same windows and no padded copy of the input is made.
    """
    variance, mean, shift = norm.running_var, norm.running_mean, norm.bias
    assert variance is not None
    assert mean is not None
    assert convolution.padding == (0, 0)
    # In float64: folding must not cost digits.
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
    bias = shift.double() - mean.double() * scale
    if convolution.bias is not None:
        bias = bias + convolution.bias.double() * scale
    if extra := after - before:
        weight = F.pad(weight, (extra, 0, extra, 0))
    return Convolution(
        weight.detach().float(),
        bias.detach().float(),
        convolution.stride[0],
        after,
        convolution.groups,
    )


class Chain:
    """Convolutions one after the other, on a device and in a precision."""

    def __init__(self, convolutions: list[Convolution], placement: Placement) -> None:
        self.fused = _has_onednn(placement)
        prepare = _packed if self.fused else _channels_last
        self._convolutions = [prepare(each, placement) for each in convolutions]
        self._dtype = placement.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in channels-last memory -> (B, channels out, H out, W out), likewise."""
        x = kept = x.to(self._dtype)
        run = _run_onednn if self.fused else _run_plain
        for convolution in self._convolutions:
            kept = x if convolution.opens else kept
            x = run(convolution, x, kept)
        return x


def _has_onednn(placement: Placement) -> bool:
    """oneDNN's fused operators are not public: where a build of torch lacks them, do without."""
    here = placement.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    if not here or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    half = placement.dtype == torch.bfloat16
    return not half or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _channels_last(convolution: Convolution, placement: Placement) -> Convolution:
    weight = convolution.weight.to(placement.device, placement.dtype)
    return replace(
        convolution,
        weight=weight.contiguous(memory_format=torch.channels_last),
        bias=convolution.bias.to(placement.device, placement.dtype),
    )


def _packed(convolution: Convolution, placement: Placement) -> Convolution:
    """Weights in the blocked layout that oneDNN would otherwise make anew for every batch."""
    here = _channels_last(convolution, placement)
    packed = torch.ops.mkldnn._reorder_convolution_weight(here.weight, *_geometry(here), [])
    return replace(here, weight=packed)


def _geometry(c: Convolution) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups in the order of oneDNN's operators."""
    return [c.padding] * 2, [c.stride] * 2, [1, 1], c.groups


def _run_onednn(c: Convolution, x: Tensor, kept: Tensor) -> Tensor:
    """One convolution of (B, channels, H, W); writes into `kept` where the block closes."""
    operators: Any = torch.ops.mkldnn
    if c.closes:
        summed: Tensor = operators._convolution_pointwise_.binary(
            kept, x, c.weight, c.bias, *_geometry(c), "add", 1.0, None, [], None
        )
        return summed
    activation = ("hardtanh", [0.0, 6.0]) if c.relu6 else ("none", [])
    out: Tensor = operators._convolution_pointwise(x, c.weight, c.bias, *_geometry(c), *activation, "")
    return out


def _run_plain(c: Convolution, x: Tensor, kept: Tensor) -> Tensor:
    """The same in plain torch."""
    x = F.conv2d(x, c.weight, c.bias, c.stride, c.padding, 1, c.groups)
    if c.relu6:
        x = x.clamp_(0, 6)
    return x.add_(kept) if c.closes else x
