"""Object detectors of the transformers library: regions are their queries, with boxes, scores and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.placement import Normaliser, Placement, readable
from itmfeat_extract.backbones.preprocess import Preprocessing, read
from itmfeat_extract.backbones.view import View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CPU_STEP = 1  # pictures that a core computes at once: these are large

# What a detector that is asked by words is asked for: the classes of COCO, which the others know too.
WORDS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
    "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, "
    "bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, "
    "potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, "
    "oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)


@dataclass(frozen=True)
class Family:
    """How to load the detector of a model type and to read its answer."""

    architecture: str
    processor: str  # where the checkpoint does not name one
    background: bool = False  # the last class is "no object", so classes exclude each other
    prompted: bool = False  # asked by words: its logits are of their tokens


FAMILIES: dict[str, Family] = {
    "detr": Family("DetrForObjectDetection", "Detr", background=True),
    "conditional_detr": Family("ConditionalDetrForObjectDetection", "ConditionalDetr"),
    "deformable_detr": Family("DeformableDetrForObjectDetection", "DeformableDetr"),
    "rt_detr": Family("RTDetrForObjectDetection", "RTDetr"),
    "rt_detr_v2": Family("RTDetrV2ForObjectDetection", "RTDetr"),
    "d_fine": Family("DFineForObjectDetection", "RTDetr"),
    "grounding-dino": Family("GroundingDinoForObjectDetection", "GroundingDino", prompted=True),
    "mm-grounding-dino": Family("MMGroundingDinoForObjectDetection", "GroundingDino", prompted=True),
}


@dataclass(frozen=True, eq=False)
class Prompt:
    """The words that a detector is asked by."""

    ids: Tensor  # (L,), their tokens
    classes: Tensor  # (L,), the number of the word that a token belongs to


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector's queries as regions, in the model's own order; their box, best score and its class."""

    name: str
    origin: Fingerprint  # the checkpoint's
    placement: Placement
    model: Any
    preprocessing: Preprocessing
    normalise: Normaliser
    family: Family
    classes: list[str]
    prompt: Prompt | None
    dim: int
    regions: int
    grid: None = None
    pooled_dim: int = 0
    boxed: bool = True

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (H, W, 3); most models keep its proportions."""
        return self.preprocessing.apply(image)

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, H, W, 3) in uint8 -> vectors (B, R, D), boxes (B, R, 4), scores and labels (B, R)."""
        return self.placement.encode(self._encode, CPU_STEP, pixels)

    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing, precision and the names of the labels."""
        return {
            **self.origin,
            "architecture": type(self.model).__name__,
            "layer": "last_hidden_state",
            "pooled": "none",
            "scores": "softmax without the last class" if self.family.background else "sigmoid",
            "classes": self.classes,
            "dtype": self.placement.dtype_name,
            **self.preprocessing.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """As `encode`, in one forward pass."""
        words = {}
        if self.prompt is not None:
            ids = self.prompt.ids.expand(len(pixels), -1)
            words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with self.placement.autocast():
            answer = self.model(pixel_values=self.normalise(pixels), **words)
        logits = answer.logits.float()  # (B, R, classes), of a prompt (B, R, its tokens and more)
        chances = logits.softmax(-1)[..., :-1] if self.family.background else logits.sigmoid()
        if self.prompt is not None:
            chances = chances[..., : len(self.prompt.ids)]
        scores, labels = chances.max(-1)
        if self.prompt is not None:
            labels = self.prompt.classes[labels]
        vectors, boxes = readable(answer.last_hidden_state), corners(answer.pred_boxes.float())
        return Encoded(vectors, None, boxes, scores, labels)


def corners(boxes: Tensor) -> Tensor:
    """Centres and sizes (..., 4) as parts of the picture -> x1, y1, x2, y2 inside it."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1).clamp(0, 1)


def load(checkpoint: hub.Checkpoint, placement: Placement, view: View) -> Detector:
    """The detector of a checkpoint."""
    if not view.layers.last:
        raise UsageError(f"{checkpoint.name} gives the queries of its last layer: leave out --layers")
    if view.resize == "crop":
        raise UsageError(
            f"the boxes of {checkpoint.name} are parts of whole pictures: leave out --resize crop"
        )
    folder = checkpoint.folder
    family = FAMILIES[checkpoint.model_type]
    preprocessing = read(folder, family.processor).changed(view.image_size, view.resize)
    if preprocessing.crop is not None:
        raise UsageError(f"the processor of {checkpoint.name} crops pictures: add --resize squash")
    model, _ = hub.load_model(family.architecture, folder)
    config = model.config
    named = [str(name) for _, name in sorted(config.id2label.items())]
    classes = WORDS.split(", ") if family.prompted else named
    return Detector(
        checkpoint.name,
        checkpoint.fingerprint(),
        placement,
        placement.ready(model, dynamic=preprocessing.size is None),
        preprocessing,
        Normaliser(preprocessing, placement),
        family,
        classes,
        _prompt(checkpoint, classes, config.max_text_len, placement) if family.prompted else None,
        int(config.d_model),
        int(config.num_queries),
    )


def _prompt(checkpoint: hub.Checkpoint, names: list[str], longest: int, placement: Placement) -> Prompt:
    """The classes as these models were trained to read them: each ends with a full stop."""
    tokenizer = hub.load_tokenizer(checkpoint.folder)
    pieces = [tokenizer(f"{name} .", add_special_tokens=False)["input_ids"] for name in names]
    whole = tokenizer(" . ".join(names) + " .")["input_ids"]
    owners = [number for number, piece in enumerate(pieces) for _ in piece]
    if len(whole) != len(owners) + 2 or len(whole) > longest:
        raise DataError(f"the prompt has {len(whole)} tokens, and {checkpoint.name} reads {longest} at most")
    device = placement.device
    # The special tokens at both ends belong to nobody; a query that likes them best gets a neighbour's class.
    classes = torch.tensor([owners[0], *owners, owners[-1]], device=device)
    return Prompt(torch.tensor(whole, device=device), classes)
