"""Parameters with a leading run axis, each run's slice drawn by its own generator.

A run therefore starts from the same numbers alone and in any stack.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def uniform(shape: tuple[int, ...], bound: float, generators: list[torch.Generator]) -> Tensor:
    """Uniform in [-bound, bound], (K, *shape)."""
    return torch.stack([torch.rand(shape, generator=g) * 2 * bound - bound for g in generators])


class StackedLinear(nn.Module):
    """K affine maps side by side."""

    def __init__(
        self, inputs: int, outputs: int, generators: list[torch.Generator], gain: float = 1.0
    ) -> None:
        super().__init__()
        bound = gain * math.sqrt(6 / (inputs + outputs))  # Glorot and Bengio 2010
        self.weight = nn.Parameter(uniform((outputs, inputs), bound, generators))
        self.bias = nn.Parameter(torch.zeros(len(generators), outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(1 or K, ..., D) -> (K, ..., E). A shared input costs one product for all runs."""
        runs, outputs, _ = self.weight.shape
        if x.shape[0] == 1:
            y = F.linear(x[0], self.weight.flatten(0, 1), self.bias.flatten())
            return y.view(*y.shape[:-1], runs, outputs).movedim(-2, 0)
        flat = x.flatten(1, -2)  # (K, V, D)
        y = torch.baddbmm(self.bias.unsqueeze(1), flat, self.weight.transpose(1, 2))
        return y.view(runs, *x.shape[1:-1], outputs)
