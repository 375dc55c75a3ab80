"""One modality's head: standardise, project each vector, pool, and refine by a residual perceptron.

    linear:  y = pool_r(W x_r + b)
    mlp:     z = y + V relu(U y + c) + d

The projection stands before the pooling, as in VSE-infinity (arXiv 2011.04305), so that each embedding
dimension can take its own regions. With mean pooling the order makes no difference and the mean goes
first. The residual looks at the pooled vector; VSE-infinity's runs on every vector, at R times the cost.

Dropout takes whole input channels of an item, in all its vectors at once, and hidden units of the
perceptron. Its masks follow from the batch and are shared by the runs of a stack.
"""

import copy

import torch
from torch import Tensor, nn

from itmfeat.cache import FeatureFile
from itmfeat.heads import pooling
from itmfeat.heads.gpo import PositionWeights
from itmfeat.heads.projected_max import projected_max
from itmfeat.heads.stacked import StackedLinear
from itmfeat.loader import Means, Side
from itmfeat.pairs import Ints


def input_statistics(file: FeatureFile, rows: Ints, limit: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean vector (D,) of up to `limit` evenly spaced items, and the typical deviation () of an item's mean.

    Frozen features are far from centred (post-activation grids are all positive), which leaves cosines
    bunched near one at the start; heads subtract the mean and divide by the deviation.
    """
    chosen = rows[:: max(1, -(-len(rows) // limit))].copy()
    means = Means(file, chosen).table.double()
    deviation = means.std(0, correction=0).mean().clamp(min=1e-6)
    return means.mean(0).float(), deviation.float()


def _keep(rate: float, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Factors of dropout: zero with probability `rate`, else 1 / (1 - rate)."""
    mask = torch.rand(shape, generator=random, device=random.device) >= rate
    return mask / (1 - rate)


class Head(nn.Module):
    """K heads side by side. `mean` (D,) and `scale` () standardise the input; K = len(generators)."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        inputs: int,
        generators: list[torch.Generator],
        *,
        dim: int = 512,
        pool: str = "mean",
        projection: str = "linear",
        topk: int = 5,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        mean, scale = statistics or (torch.zeros(inputs), torch.ones(()))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.pool, self.topk = pool, topk
        self.dropout, self.hidden_dropout = dropout, hidden_dropout
        self.linear = StackedLinear(inputs, dim, generators)
        self.hidden = self.out = None
        if projection == "mlp":
            self.hidden = StackedLinear(dim, 2 * dim, generators)
            self.out = StackedLinear(2 * dim, dim, generators, gain=0.0)  # starts as the linear head
        self.weights = PositionWeights(generators) if pool == "gpo" else None

    def forward(self, side: Side, variant: Tensor | None = None) -> Tensor:
        """Vectors (N, B, L, D) -> embeddings (K, B, E), not normalised.

        `variant` (K,) says which of the N inputs each run takes; None if N is 1 or K in order.
        """
        x = (side.wide() - self.mean) / self.scale
        random = None
        if side.drop_seed is not None:
            random = torch.Generator(x.device).manual_seed(side.drop_seed)
            x = x * _keep(self.dropout, (x.shape[1], 1, x.shape[3]), random)
        y = self._projected(x, side.lengths, variant if len(x) > 1 else None)
        if self.hidden is None or self.out is None:
            return y
        hidden = torch.relu(self.hidden(y))  # (K, B, 2E)
        if random is not None:
            hidden = hidden * _keep(self.hidden_dropout, hidden.shape[1:], random)
        refined: Tensor = y + self.out(hidden)
        return refined

    def copied(self, runs: Tensor) -> "Head":
        """A copy of some of the K heads, without gradients."""
        head = copy.deepcopy(self)
        for module in head.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(value.detach()[runs], requires_grad=False))
        return head

    def _projected(self, x: Tensor, lengths: Tensor, variant: Tensor | None) -> Tensor:
        """Vectors (N, B, L, D), of which each run takes one of N -> projected and pooled, (K, B, E)."""
        if self.pool == "max":
            runs = len(self.linear.weight)
            source = (
                variant.tolist() if variant is not None else [0] * runs if len(x) == 1 else [*range(runs)]
            )
            return projected_max(x, lengths, source, self.linear.weight, self.linear.bias)
        if variant is not None:
            x, lengths = x[variant], lengths[variant]
        if self.pool == "mean":
            y: Tensor = self.linear(pooling.mean(x, lengths))
            return y
        return self._pooled(self.linear(x), lengths)

    def _pooled(self, y: Tensor, lengths: Tensor) -> Tensor:
        """(K, B, L, E) with lengths (1 or K, B) -> (K, B, E)."""
        match self.pool:
            case "topk":
                return pooling.topk(y, lengths, self.topk)
            case _:
                assert self.weights is not None
                weights = self.weights(lengths)  # (K, N, B, L)
                runs = torch.arange(len(weights), device=y.device)
                own = weights[runs, runs if weights.shape[1] > 1 else 0]
                return pooling.weighted(y, lengths, own)
