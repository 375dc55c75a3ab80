"""Vision encoders of the transformers library, seen as a grid: one `Family` for each `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from itmfeat.errors import DataError, UsageError, unknown
from itmfeat_extract.backbones import detectors, hub, naflex
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.placement import Normaliser, Placement, readable
from itmfeat_extract.backbones.preprocess import Preprocessing, read
from itmfeat_extract.backbones.view import Layers, View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CPU_STEP = 4  # images that a core computes at once


@dataclass(frozen=True)
class Family:
    """How to load the vision encoder of a model type and to read its answer.

    Regions are the patches of `last_hidden_state`: what stands before them (class token, registers) is cut.
    Maps (B, D, h, w) become as many patches. `pooled` is an attribute of the answer, or the class token.
    """

    architecture: str
    processor: str  # where the checkpoint does not name one
    prefix: Literal[0, 1]  # class tokens before the patches; registers come from the configuration
    pooled: Literal["class token", "image_embeds", "pooler_output"]
    projection: str | None = None  # a weight that a checkpoint may lack: then nothing is pooled
    any_size: bool = False  # follows the size of the picture; others must be told to interpolate positions
    with_pooler: bool = True  # False: the class takes add_pooling_layer=False
    stride: int | None = None  # pixels a region, where that is not the size of a patch


CLIP = Family("CLIPVisionModelWithProjection", "CLIP", 1, "image_embeds", "visual_projection.weight")
SIGLIP = Family("SiglipVisionModel", "Siglip", 0, "pooler_output")


def _pyramid(architecture: str, processor: str, prefix: Literal[0, 1] = 0) -> Family:
    """Stages that halve the picture five times in all."""
    return Family(architecture, processor, prefix, "pooler_output", any_size=True, stride=32)


FAMILIES: dict[str, Family] = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "vit": Family("ViTModel", "ViT", 1, "class token", with_pooler=False),
    "dinov2": Family("Dinov2Model", "Bit", 1, "class token", any_size=True),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "Bit", 1, "class token", any_size=True),
    "dinov3_vit": Family("DINOv3ViTModel", "DINOv3ViT", 1, "class token", any_size=True),
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    # Here the first token is the mean of the others, normalised.
    "dinov3_convnext": _pyramid("DINOv3ConvNextModel", "DINOv3ViT", 1),
    "convnext": _pyramid("ConvNextModel", "ConvNext"),
    "convnextv2": _pyramid("ConvNextV2Model", "ConvNext"),
    "resnet": _pyramid("ResNetModel", "ConvNext"),
    "swin": _pyramid("SwinModel", "ViT"),
    "swinv2": _pyramid("Swinv2Model", "ViT"),
}


@dataclass(frozen=True, eq=False)
class TransformersImage:
    """A vision encoder, seen as a grid of patches."""

    name: str
    origin: Fingerprint  # the checkpoint's
    placement: Placement
    model: Any
    preprocessing: Preprocessing
    normalise: Normaliser
    prefix: int
    pooled: str  # "none" where the checkpoint lacks the projection
    layers: Layers
    options: dict[str, bool]  # of the forward pass
    grid: tuple[int, int] = (0, 0)
    dim: int = 0
    pooled_dim: int = 0
    boxed: bool = False

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
            "layer": self.layers.described,
            "pooled": self.pooled,
            "dtype": self.placement.dtype_name,
            **self.preprocessing.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """As `encode`, in one forward pass."""
        with self.placement.autocast():
            answer = self.model(pixel_values=self.normalise(pixels), **self.options)
        tokens = answer.last_hidden_state
        if tokens.dim() == 4:  # a map (B, D, h, w)
            tokens = tokens.flatten(2).transpose(1, 2)
        tokens = self.layers.of(answer.get("hidden_states"), tokens)  # (B, prefix + R, D)
        return Encoded(readable(tokens[:, self.prefix :]), self._pooled(answer, tokens))

    def _pooled(self, answer: Any, tokens: Tensor) -> Tensor | None:
        """The model's answer and its tokens (B, prefix + R, D) -> (B, P), or None."""
        if self.pooled == "none":
            return None
        return readable(tokens[:, 0] if self.pooled == "class token" else answer[self.pooled].flatten(1))

    def measured(self, height: int, width: int) -> TransformersImage:
        """With the sizes that a blank picture of so many pixels shows."""
        try:
            seen = self._encode(torch.zeros((1, height, width, 3), dtype=torch.uint8))
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"{self.name} cannot take {height} x {width} pixels: {reason}") from error
        _, regions, dim = seen.vectors.shape
        pooled_dim = 0 if seen.pooled is None else seen.pooled.shape[1]
        return replace(self, grid=_grid(regions, height, width), dim=dim, pooled_dim=pooled_dim)


def load(checkpoint: hub.Checkpoint, placement: Placement, view: View) -> TransformersImage:
    """The vision encoder of a checkpoint, also of one that holds a text encoder beside it."""
    folder, model_type = checkpoint.folder, checkpoint.model_type
    family = FAMILIES.get(model_type)
    if family is None:
        known = [*FAMILIES, *detectors.FAMILIES, *naflex.FAMILIES]
        raise unknown(f"image model type (of {checkpoint.name})", model_type, known)
    if family.stride and not view.layers.last:
        raise UsageError(f"{checkpoint.name} has layers of different sizes: leave out --layers")
    preprocessing = read(folder, family.processor).changed(view.image_size, view.resize)
    options = {} if family.with_pooler else {"add_pooling_layer": False}
    optional = [family.projection] if family.projection else []
    model, missing = hub.load_model(family.architecture, folder, optional, **options)
    if preprocessing.size is None:  # a detector's processor
        raise DataError(f"{checkpoint.name}: its processor gives pictures no fixed size; add --resize squash")
    height, width = preprocessing.size
    asked = view.image_size is not None
    interpolate = _interpolates(checkpoint.name, family, model.config, (height, width), asked)
    backbone = TransformersImage(
        checkpoint.name,
        checkpoint.fingerprint(),
        placement,
        placement.ready(model),
        preprocessing,
        Normaliser(preprocessing, placement),
        family.prefix + getattr(model.config, "num_register_tokens", 0),
        "none" if missing else family.pooled,
        view.layers,
        ({"interpolate_pos_encoding": True} if interpolate else {})
        | ({} if view.layers.last else {"output_hidden_states": True}),
    )
    return backbone.measured(height, width)


def _interpolates(name: str, family: Family, config: Any, size: tuple[int, int], asked: bool) -> bool:
    """Whether the model must stretch its position embeddings; an error where nobody asked it to."""
    unit = family.stride or _pair(config.patch_size)[0]
    if size == _pair(getattr(config, "image_size", 0)):
        return False
    if asked and size[0] % unit:
        near = max(1, round(size[0] / unit)) * unit
        raise UsageError(f"{name} takes image sizes that {unit} divides: --image-size {near}, not {size[0]}")
    if family.any_size:
        return False
    if not asked:
        trained = _pair(config.image_size)
        raise DataError(
            f"{name}: pictures come as {size[0]} x {size[1]} pixels (preprocessor_config.json) and "
            f"its model takes {trained[0]} x {trained[1]} (config.json)"
        )
    return True


def _grid(regions: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of so many regions that have the picture's proportions best."""
    rows = [count for count in range(1, regions + 1) if regions % count == 0]
    best = min(rows, key=lambda count: abs(count * width - regions // count * height))
    return best, regions // best


def _pair(value: Any) -> tuple[int, int]:
    """Configurations give a size once or twice."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
