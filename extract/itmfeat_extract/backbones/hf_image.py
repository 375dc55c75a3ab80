"""Vision transformers of the transformers library: one `Family` for each `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from itmfeat.errors import DataError, unknown
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.placement import Normaliser, Placement, place, readable
from itmfeat_extract.backbones.preprocess import Preprocessing, read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CPU_STEP = 4  # images that a core computes at once


@dataclass(frozen=True)
class Family:
    """How to load the vision encoder of a model type and to read its answer.

    Regions are the patches of `last_hidden_state`: what stands before them (class token, registers) is cut.
    `pooled` is an attribute of the answer, or the class token.
    """

    architecture: str
    processor: str  # where the checkpoint does not name one
    prefix: Literal[0, 1]  # class tokens before the patches; registers come from the configuration
    pooled: Literal["class token", "image_embeds", "pooler_output"]
    projection: str | None = None  # a weight that a checkpoint may lack: then nothing is pooled
    any_size: bool = False  # position embeddings follow the size of the picture
    with_pooler: bool = True  # False: the class takes add_pooling_layer=False


CLIP = Family("CLIPVisionModelWithProjection", "CLIP", 1, "image_embeds", "visual_projection.weight")
SIGLIP = Family("SiglipVisionModel", "Siglip", 0, "pooler_output")

FAMILIES: dict[str, Family] = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "vit": Family("ViTModel", "ViT", 1, "class token", with_pooler=False),
    "dinov2": Family("Dinov2Model", "Bit", 1, "class token", any_size=True),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "Bit", 1, "class token", any_size=True),
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}


@dataclass(frozen=True, eq=False)
class TransformersImage:
    """A vision transformer, seen as a grid of patches."""

    name: str
    origin: Fingerprint  # the checkpoint's
    placement: Placement
    model: Any
    preprocessing: Preprocessing
    normalise: Normaliser
    prefix: int
    pooled: str  # "none" where the checkpoint lacks the projection
    dim: int
    grid: tuple[int, int]
    pooled_dim: int

    @property
    def regions(self) -> int:
        """R, one a patch."""
        return self.grid[0] * self.grid[1]

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (H, W, 3) of the size that the checkpoint asks for."""
        return self.preprocessing.apply(image)

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, H, W, 3) in uint8 -> vectors (B, R, D), pooled (B, P) or None."""
        return self.placement.encode(self._encode, CPU_STEP, pixels)

    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing and precision."""
        return {
            **self.origin,
            "architecture": type(self.model).__name__,
            "layer": "last_hidden_state",
            "pooled": self.pooled,
            "dtype": self.placement.dtype_name,
            **self.preprocessing.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """As `encode`, in one forward pass."""
        with self.placement.autocast():
            answer = self.model(pixel_values=self.normalise(pixels))
        tokens = answer.last_hidden_state  # (B, prefix + R, D)
        return Encoded(readable(tokens[:, self.prefix :]), self._pooled(answer, tokens))

    def _pooled(self, answer: Any, tokens: Tensor) -> Tensor | None:
        """The model's answer and its tokens (B, prefix + R, D) -> (B, P), or None."""
        if self.pooled == "none":
            return None
        return readable(tokens[:, 0] if self.pooled == "class token" else answer[self.pooled])


def load(checkpoint: hub.Checkpoint, device: str, dtype: str | None) -> TransformersImage:
    """The vision encoder of a checkpoint, also of one that holds a text encoder beside it."""
    placement = place(device, dtype)
    folder, model_type = checkpoint.folder, checkpoint.model_type
    family = FAMILIES.get(model_type)
    if family is None:
        raise unknown(f"image model type (of {checkpoint.name})", model_type, list(FAMILIES))
    preprocessing = read(folder, family.processor)
    options = {} if family.with_pooler else {"add_pooling_layer": False}
    optional = [family.projection] if family.projection else []
    model, missing = hub.load_model(family.architecture, folder, optional, **options)
    config, pooled = model.config, "none" if missing else family.pooled
    return TransformersImage(
        checkpoint.name,
        checkpoint.fingerprint(),
        placement,
        model.to(placement.device),
        preprocessing,
        Normaliser(preprocessing, placement),
        family.prefix + getattr(config, "num_register_tokens", 0),
        pooled,
        config.hidden_size,
        _grid(folder, family, config, preprocessing),
        _pooled_dim(pooled, config),
    )


def _pooled_dim(pooled: str, config: Any) -> int:
    if pooled == "none":
        return 0
    return int(config.projection_dim if pooled == "image_embeds" else config.hidden_size)


def _grid(folder: Path, family: Family, config: Any, preprocessing: Preprocessing) -> tuple[int, int]:
    """Rows and columns of patches."""
    size, trained = preprocessing.size, _pair(config.image_size)
    if size != trained and not family.any_size:
        raise DataError(
            f"{folder.name}: pictures come as {size[0]} x {size[1]} pixels (preprocessor_config.json) and "
            f"its model takes {trained[0]} x {trained[1]} (config.json)"
        )
    patch = _pair(config.patch_size)
    return size[0] // patch[0], size[1] // patch[1]


def _pair(value: Any) -> tuple[int, int]:
    """Configurations give a size once or twice."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
