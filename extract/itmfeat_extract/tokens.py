"""Token policies: which vectors of an image go into the cache."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from itmfeat.errors import UsageError
from itmfeat_extract.backbones import Encoded, ImageBackbone


@dataclass(frozen=True)
class TokenPolicy:
    """`all` regions, `pooled` to one vector, or a `grid` of H x W cells."""

    kind: str = "all"
    grid: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, text: str) -> "TokenPolicy":
        """From the command line: all, pooled or grid:HxW."""
        if text in ("all", "pooled"):
            return cls(text)
        if (found := re.fullmatch(r"grid:(\d+)x(\d+)", text)) and int(found[1]) and int(found[2]):
            return cls("grid", (int(found[1]), int(found[2])))
        raise UsageError(f"--tokens must be all, pooled or grid:HxW, not {text!r}")

    def __str__(self) -> str:
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
        if backbone.grid is None:
            raise UsageError(f"{backbone.name} has no grid of regions; use --tokens all or pooled")
        if self.grid[0] > backbone.grid[0] or self.grid[1] > backbone.grid[1]:
            raise UsageError(f"--tokens {self} is finer than the {backbone.grid} grid of {backbone.name}")
        return self.grid[0] * self.grid[1]

    def apply(self, encoded: Encoded, backbone: ImageBackbone) -> Any:
        """Vectors (B, R, D) -> the kept ones of all images one after another, (B * R', D)."""
        vectors: Tensor = encoded.vectors
        if self.kind == "pooled":
            vectors = vectors.mean(1, keepdim=True)
        elif self.kind == "grid":
            assert backbone.grid is not None
            plane = vectors.transpose(1, 2).reshape(len(vectors), -1, *backbone.grid)  # (B, D, H, W)
            vectors = F.adaptive_avg_pool2d(plane, self.grid).flatten(2).transpose(1, 2)
        return vectors.flatten(0, 1)
