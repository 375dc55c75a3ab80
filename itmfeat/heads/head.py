"""One modality's head: standardise, project each vector, pool, and add a residual of the mean.

    linear:  y = pool_r(W x_r + b)
    mlp:     y = pool_r(W x_r + b) + V relu(U mean_r(x_r) + c) + d

The projection stands before the pooling, as in VSE-infinity (arXiv 2011.04305), so that each embedding
dimension can take its own regions. With mean pooling the order makes no difference and the mean goes
first. The residual looks at the mean vector; VSE-infinity runs it on every vector, at R times the cost.
"""

import torch
from torch import Tensor, nn

from itmfeat.cache import FeatureFile, Gather
from itmfeat.heads import pooling
from itmfeat.heads.gpo import PositionWeights
from itmfeat.heads.stacked import StackedLinear
from itmfeat.loader import Side
from itmfeat.pairs import Ints


def input_statistics(file: FeatureFile, rows: Ints, limit: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean vector (D,) and one scale () of the vectors of at most `limit` evenly spaced items.

    Frozen features are far from centred (post-activation grids are all positive), which leaves cosines
    bunched near one at the start; heads subtract the mean and divide by the typical deviation.
    """
    chosen = torch.from_numpy(rows[:: max(1, -(-len(rows) // limit))].copy())
    total = torch.zeros(2, file.dim, dtype=torch.float64)
    count = 0
    gather = Gather(file)
    for part in torch.split(chosen, 256):
        found = gather(part)
        real = pooling.inside(found.lengths, found.vectors.shape[1])
        vectors = found.vectors[real].double()
        total += torch.stack([vectors.sum(0), vectors.square().sum(0)])
        count += len(vectors)
    mean, square = total / max(1, count)
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().mean().clamp(min=1e-6).float()


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
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        mean, scale = statistics or (torch.zeros(inputs), torch.ones(()))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.pool, self.topk = pool, topk
        self.linear = StackedLinear(inputs, dim, generators)
        self.hidden = self.out = None
        if projection == "mlp":
            self.hidden = StackedLinear(inputs, 2 * dim, generators)
            self.out = StackedLinear(2 * dim, dim, generators)
        self.weights = PositionWeights(generators) if pool == "gpo" else None

    def forward(self, side: Side, variant: Tensor | None = None) -> Tensor:
        """Vectors (N, B, L, D) -> embeddings (K, B, E), not normalised.

        `variant` (K,) says which of the N inputs each run takes; None if N is 1 or K in order.
        """
        x = (side.vectors.float() - self.mean) / self.scale
        if side.keep is not None:
            x = x * side.keep.unsqueeze(1)
        lengths = side.lengths
        if variant is not None and len(x) > 1:
            x, lengths = x[variant], lengths[variant]
        average = None
        if self.pool == "mean" or self.hidden is not None:
            average = pooling.mean(x, lengths)  # (N, B, D)
        if self.pool == "mean":
            y = self.linear(average)
        else:
            y = self._pooled(self.linear(x), lengths)
        if self.hidden is not None and self.out is not None:
            y = y + self.out(torch.relu(self.hidden(average)))
        return y

    def _pooled(self, y: Tensor, lengths: Tensor) -> Tensor:
        """(K, B, L, E) with lengths (1 or K, B) -> (K, B, E)."""
        match self.pool:
            case "max":
                return pooling.maximum(y, lengths)
            case "topk":
                return pooling.topk(y, lengths, self.topk)
            case _:
                assert self.weights is not None
                weights = self.weights(lengths)  # (K, N, B, L)
                runs = torch.arange(len(weights), device=y.device)
                own = weights[runs, runs if weights.shape[1] > 1 else 0]
                return pooling.weighted(y, lengths, own)
