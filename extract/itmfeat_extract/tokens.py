"""Token policies: which vectors of an image go into the cache."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.errors import UsageError
from itmfeat_extract.backbones import Encoded, ImageBackbone


@dataclass(frozen=True)
class TokenPolicy:
    """`all` regions, `pooled` to one vector, a `grid` of H x W cells, or the `topk` with the best scores."""

    kind: str = "all"
    grid: tuple[int, int] = (0, 0)
    count: int = 0  # of topk

    @classmethod
    def parse(cls, text: str) -> "TokenPolicy":
        """From the command line: all, pooled, grid:HxW or topk:N."""
        if text in ("all", "pooled"):
            return cls(text)
        if (found := re.fullmatch(r"grid:(\d+)x(\d+)", text)) and int(found[1]) and int(found[2]):
            return cls("grid", (int(found[1]), int(found[2])))
        if (found := re.fullmatch(r"topk:(\d+)", text)) and int(found[1]):
            return cls("topk", count=int(found[1]))
        raise UsageError(f"--tokens must be all, pooled, grid:HxW or topk:N, not {text!r}")

    def __str__(self) -> str:
        if self.kind == "topk":
            return f"topk:{self.count}"
        return f"grid:{self.grid[0]}x{self.grid[1]}" if self.kind == "grid" else self.kind

    @property
    def suffix(self) -> str:
        """What distinguishes the file of a reduced extraction: nothing for all vectors."""
        return "" if self.kind == "all" else "@" + str(self).replace(":", "")

    def regions(self, backbone: ImageBackbone) -> int:
        """Vectors of an image under this policy."""
        if self.kind == "pooled":
            return 1
        if self.kind == "all":
            return backbone.regions
        if self.kind == "topk":
            return self._best(backbone)
        if backbone.grid is None:
            raise UsageError(f"{backbone.name} has no grid of regions; use --tokens all or pooled")
        if self.grid[0] > backbone.grid[0] or self.grid[1] > backbone.grid[1]:
            raise UsageError(f"--tokens {self} is finer than the {backbone.grid} grid of {backbone.name}")
        return self.grid[0] * self.grid[1]

    def boxed(self, backbone: ImageBackbone) -> bool:
        """Whether the kept vectors have boxes, scores and labels: means of regions have none."""
        return backbone.boxed and self.kind in ("all", "topk")

    def apply(self, encoded: Encoded, backbone: ImageBackbone) -> dict[str, Tensor]:
        """Payloads of a cache: `features` (B * R', D), all images one after another, and what else there is.

        That is `boxes` (B * R', 4), `scores` and `labels` (B * R') of a detector, and `pooled` (B, P). `topk`
        keeps a detector's queries by falling score; of equal scores the first.
        """
        if encoded.grids is not None:
            return self._ragged(encoded.vectors, encoded.grids.tolist()) | _pooled(encoded)
        found = {"features": encoded.vectors}
        if self.kind == "pooled":
            found["features"] = encoded.vectors.mean(1, keepdim=True)
        elif self.kind == "grid":
            assert backbone.grid is not None
            plane = encoded.vectors.transpose(1, 2).reshape(len(encoded.vectors), -1, *backbone.grid)
            found["features"] = F.adaptive_avg_pool2d(plane, self.grid).flatten(2).transpose(1, 2)
        elif encoded.boxes is not None and encoded.scores is not None and encoded.labels is not None:
            found |= {"boxes": encoded.boxes, "scores": encoded.scores, "labels": encoded.labels}
            if self.kind == "topk":
                order = encoded.scores.sort(dim=1, descending=True, stable=True).indices[:, : self.count]
                rows = torch.arange(len(order), device=order.device).unsqueeze(1)
                found = {name: values[rows, order] for name, values in found.items()}
        return {name: values.flatten(0, 1) for name, values in found.items()} | _pooled(encoded)

    def _ragged(self, vectors: Tensor, grids: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Vectors (B, R, D) of pictures with grids of their own -> `features` (sum of R', D)."""
        parts = [picture[: rows * columns] for picture, (rows, columns) in zip(vectors, grids, strict=True)]
        if self.kind == "pooled":
            parts = [part.mean(0, keepdim=True) for part in parts]
        elif self.kind == "grid":
            planes = [part.T.unflatten(1, grid) for part, grid in zip(parts, grids, strict=True)]
            parts = [F.adaptive_avg_pool2d(plane, self.grid).flatten(1).T for plane in planes]
        return {"features": torch.cat(parts) if parts else vectors.new_empty(0, vectors.shape[2])}

    def _best(self, backbone: ImageBackbone) -> int:
        if not backbone.boxed:
            raise UsageError(
                f"the regions of {backbone.name} have no scores; use --tokens all, pooled or grid:HxW"
            )
        if self.count > backbone.regions:
            raise UsageError(
                f"--tokens {self} is more than the {backbone.regions} regions of {backbone.name}"
            )
        return self.count


def _pooled(encoded: Encoded) -> dict[str, Tensor]:
    return {} if encoded.pooled is None else {"pooled": encoded.pooled}
