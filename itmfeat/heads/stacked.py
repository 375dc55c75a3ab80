"""Parameters with a leading run axis, each run's slice drawn by its own generator.

A run therefore starts from the same numbers alone and in any stack.
"""

import math

import torch
from torch import Tensor, nn


def uniform(shape: tuple[int, ...], bound: float, generators: list[torch.Generator]) -> Tensor:
    """Uniform in [-bound, bound], (K, *shape)."""
    return torch.stack([torch.rand(shape, generator=g) * 2 * bound - bound for g in generators])


class StackedLinear(nn.Module):
    """K affine maps side by side. `weight` is (K, D, E): so its gradient comes out as it is stored."""

    def __init__(
        self, inputs: int, outputs: int, generators: list[torch.Generator], gain: float = 1.0
    ) -> None:
        super().__init__()
        bound = gain * math.sqrt(6 / (inputs + outputs))  # Glorot and Bengio 2010
        weight = uniform((outputs, inputs), bound, generators)
        self.weight = nn.Parameter(weight.transpose(1, 2).contiguous())
        self.bias = nn.Parameter(torch.zeros(len(generators), outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(1 or K, ..., D) -> (K, ..., E)."""
        flat = x.flatten(1, -2).expand(len(self.weight), -1, -1)  # (K, V, D)
        y = torch.baddbmm(self.bias.unsqueeze(1), flat, self.weight)
        return y.view(len(y), *x.shape[1:-1], -1)
