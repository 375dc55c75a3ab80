"""Image encoders of the timm library: patches or the last map as a grid, pixels by its data configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from itmfeat.errors import DataError, MissingPackageError, reason_of
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.hf_image import TransformersImage
from itmfeat_extract.backbones.placement import Normaliser, Placement
from itmfeat_extract.backbones.preprocess import Preprocessing
from itmfeat_extract.backbones.view import View


class Timm(nn.Module):
    """A model of timm that answers as one of transformers does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """(B, 3, H, W) -> tokens (B, prefix + R, D) or a map (B, D, h, w), and pooled (B, P)."""
        tokens = self.model.forward_features(pixel_values)
        pooled = self.model.forward_head(tokens, pre_logits=True)
        if tokens.dim() == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            tokens = tokens.permute(0, 3, 1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled.flatten(1))


def require(name: str) -> None:
    """An error where timm cannot be imported, before anything is downloaded for it."""
    with hub.quiet():
        try:
            import timm.data  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(f"{name} needs timm: pip install 'itmfeat[timm]'") from error
        except RuntimeError as error:  # torchvision registers operators that only its own torch has
            raise MissingPackageError(
                f"{name} needs timm, and timm a torchvision that fits torch {torch.__version__} ({error}): "
                "install both from one index, see https://pytorch.org/get-started/locally/"
            ) from error


def load(checkpoint: hub.Checkpoint, placement: Placement, view: View) -> TransformersImage:
    """The encoder of a folder as timm puts them on the hub."""
    config = hub.read_json(checkpoint.folder / "config.json")
    if "architecture" not in config:
        raise DataError(f"{checkpoint.name} is no checkpoint of timm: take hf:ID_OR_FOLDER for transformers")
    model = _model(checkpoint)
    with hub.quiet():
        from timm.data import resolve_model_data_config

        preprocessing = _preprocessing(checkpoint.name, resolve_model_data_config(model))
    preprocessing = preprocessing.changed(view.image_size, view.resize)
    assert preprocessing.size is not None
    backbone = TransformersImage(
        checkpoint.name,
        checkpoint.fingerprint() | {"model": str(config["architecture"])},
        placement,
        placement.ready(Timm(model)),
        preprocessing,
        Normaliser(preprocessing, placement),
        getattr(model, "num_prefix_tokens", 0),
        "pooler_output",
        view.layers,
        {},
    )
    return backbone.measured(*preprocessing.size)


def _model(checkpoint: hub.Checkpoint) -> Any:
    with hub.quiet():
        import timm

        try:
            model = timm.create_model(f"local-dir:{checkpoint.folder}", pretrained=True)
        except Exception as error:  # an unknown architecture, missing or damaged weights
            reason = reason_of(error)
            raise DataError(f"{checkpoint.folder.name} cannot be loaded by timm: {reason}") from error
    return model.eval().requires_grad_(False)


def _preprocessing(name: str, config: dict[str, Any]) -> Preprocessing:
    """What timm does at test time; its crop may lie one pixel beside, where a margin is odd."""
    _, height, width = config["input_size"]
    resized = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    ways: dict[str, int | tuple[int, int]] = {"center": min(resized), "squash": resized}
    if config["crop_mode"] not in ways or (config["crop_mode"] == "center" and height != width):
        raise DataError(
            f"{name} resizes pictures in a way that is not followed here ({config['crop_mode']}): "
            "take a model with center or squash"
        )
    resample = Image.Resampling[config["interpolation"].upper()]
    mean, std = (torch.tensor(config[key], dtype=torch.float64).tolist() for key in ("mean", "std"))
    return Preprocessing(ways[config["crop_mode"]], (height, width), resample, (*mean,), (*std,))
