"""The weight generator of generalised pooling (GPO), for a stack of runs.

Chen et al., CVPR 2021 (arXiv 2011.04305): sinusoidal codes of the positions 1..L run through a small
bidirectional GRU and a linear layer; a softmax over the L real positions gives the weight of each rank.
The weights depend on L alone, so they are made once for each length that a batch holds.
"""

import math

import torch
from torch import Tensor, nn

from itmfeat.heads.stacked import uniform

POSITION_DIM, HIDDEN, TEMPERATURE = 32, 32, 0.1


def position_codes(size: int, dim: int = POSITION_DIM) -> Tensor:
    """Sinusoidal codes of the positions, (L, P)."""
    steps = torch.arange(size).unsqueeze(1)
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    return torch.stack([torch.sin(steps * rates), torch.cos(steps * rates)], -1).flatten(1)


class PositionWeights(nn.Module):
    """K weight generators side by side."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        super().__init__()
        bound = HIDDEN**-0.5
        for way in ("forward", "backward"):
            for name, shape in {
                "input": (3 * HIDDEN, POSITION_DIM),
                "hidden": (3 * HIDDEN, HIDDEN),
                "input_bias": (3 * HIDDEN,),
                "hidden_bias": (3 * HIDDEN,),
            }.items():
                value = nn.Parameter(uniform(shape, bound, generators))
                self.register_parameter(f"{way}_{name}", value)
        self.out = nn.Parameter(uniform((1, HIDDEN), bound, generators))

    def forward(self, lengths: Tensor) -> Tensor:
        """Lengths (N, B) -> weights (K, N, B, L), zero behind each length."""
        unique, position = torch.unique(lengths, return_inverse=True)
        longest = int(unique[-1])
        codes = position_codes(longest).to(self.out)
        states = self._scan("forward", codes.expand(len(unique), -1, -1))
        # The way back starts at each length's own end: reversed codes, then put back in order.
        steps = torch.arange(longest, device=lengths.device)
        back = (unique.unsqueeze(1) - 1 - steps).clamp(min=0)  # (U, L)
        turned = self._scan("backward", codes[back])
        turned = turned.gather(2, back.expand(len(self.out), -1, -1).unsqueeze(-1).expand_as(turned))
        scores = ((states + turned) / 2) @ self.out.transpose(1, 2).unsqueeze(1)  # (K, U, L, 1)
        scores = scores.squeeze(-1).masked_fill(steps >= unique.unsqueeze(1), -10000.0)
        return (scores / TEMPERATURE).softmax(-1)[:, position]

    def _scan(self, way: str, codes: Tensor) -> Tensor:
        """A GRU over codes (U, L, P) -> states (K, U, L, H)."""
        get = {name: getattr(self, f"{way}_{name}") for name in ("input", "hidden")}
        biases = {name: getattr(self, f"{way}_{name}_bias").unsqueeze(1) for name in get}
        gates_in = torch.einsum("ulp,kgp->lkug", codes, get["input"]) + biases["input"]
        state = codes.new_zeros(len(self.out), codes.shape[0], HIDDEN)
        states = []
        for gates in gates_in:  # (K, U, 3H) for each position
            inner = torch.baddbmm(biases["hidden"], state, get["hidden"].transpose(1, 2))
            r_in, z_in, n_in = gates.chunk(3, -1)
            r_h, z_h, n_h = inner.chunk(3, -1)
            update = torch.sigmoid(z_in + z_h)
            fresh = torch.tanh(n_in + torch.sigmoid(r_in + r_h) * n_h)
            state = (1 - update) * fresh + update * state
            states.append(state)
        return torch.stack(states, 2)
