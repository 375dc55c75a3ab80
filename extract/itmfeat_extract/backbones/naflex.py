"""SigLIP 2 with NaFlex: pictures keep their proportions, and their patches a budget (arXiv:2502.14786)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from itmfeat.errors import DataError
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.placement import Normaliser, Placement, readable
from itmfeat_extract.backbones.preprocess import Preprocessing, read
from itmfeat_extract.backbones.view import Layers, View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CPU_STEP = 4  # images that a core computes at once
FAMILIES = ("siglip2", "siglip2_vision_model")


@dataclass(frozen=True, eq=False)
class NaFlex:
    """A vision encoder whose grid follows the picture; `regions` and `grid` are the most, of a square."""

    name: str
    origin: Fingerprint  # the checkpoint's
    placement: Placement
    model: Any
    preprocessing: Preprocessing
    normalise: Normaliser
    layers: Layers
    edge: int  # pixels of a patch
    regions: int
    grid: tuple[int, int]
    dim: int = 0
    pooled_dim: int = 0
    boxed: bool = False

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an upright picture of so many pixels."""
        height, width = self.preprocessing.resized(height, width)
        return height // self.edge, width // self.edge

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (H, W, 3), whole patches of it."""
        return self.preprocessing.apply(image)

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, H, W, 3) in uint8 -> vectors (B, R, D) of which rows x columns count, pooled (B, P)."""
        return self.placement.encode(self._encode, CPU_STEP, pixels)

    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing and precision."""
        return {
            **self.origin,
            "architecture": type(self.model).__name__,
            "layer": self.layers.described,
            "pooled": "pooler_output" if self.pooled_dim else "none",
            "dtype": self.placement.dtype_name,
            **self.preprocessing.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """As `encode`, in one forward pass. All pictures have one size, so there is no padding to mask."""
        patches, (rows, columns) = self._patches(self.normalise(pixels))
        shapes = torch.tensor([[rows, columns]] * len(pixels), device=patches.device)
        with self.placement.autocast():
            answer = self.model(
                pixel_values=patches,
                pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device),
                spatial_shapes=shapes,
                output_hidden_states=not self.layers.last,
            )
        vectors = self.layers.of(answer.get("hidden_states"), answer.last_hidden_state)
        vectors = F.pad(readable(vectors), (0, 0, 0, self.regions - rows * columns))
        pooled = answer.pooler_output
        return Encoded(vectors, None if pooled is None else readable(pooled), grids=shapes)

    def _patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) -> (B, rows * columns, edge * edge * 3), each patch row by row, colours last."""
        tiles = images.unfold(2, self.edge, self.edge).unfold(3, self.edge, self.edge)
        rows, columns = tiles.shape[2:4]  # of (B, 3, rows, columns, edge, edge)
        return tiles.permute(0, 2, 3, 4, 5, 1).reshape(len(images), rows * columns, -1), (rows, columns)

    def measured(self) -> NaFlex:
        """With the sizes that a blank picture shows."""
        seen = self._encode(torch.zeros((1, self.edge, self.edge, 3), dtype=torch.uint8))
        pooled_dim = 0 if seen.pooled is None else seen.pooled.shape[1]
        return replace(self, dim=seen.vectors.shape[2], pooled_dim=pooled_dim)


def load(checkpoint: hub.Checkpoint, placement: Placement, view: View) -> NaFlex:
    """The vision encoder of a checkpoint, also of one that holds a text encoder beside it."""
    preprocessing = read(checkpoint.folder, "Siglip2").changed(view.image_size, view.resize)
    model, _ = hub.load_model("Siglip2VisionModel", checkpoint.folder)
    if preprocessing.patches is None or preprocessing.patches[0] != model.config.patch_size:
        raise DataError(
            f"{checkpoint.name}: its processor (preprocessor_config.json) does not cut pictures into patches "
            f"of {model.config.patch_size} pixels, which its model takes (config.json)"
        )
    edge, most = preprocessing.patches
    side = int(most**0.5)
    return NaFlex(
        checkpoint.name,
        checkpoint.fingerprint(),
        placement,
        placement.ready(model, dynamic=True),
        preprocessing,
        Normaliser(preprocessing, placement),
        view.layers,
        edge,
        most,
        (side, side),
    ).measured()
