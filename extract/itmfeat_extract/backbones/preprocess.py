"""From a picture to uint8 pixels of a fixed size, in Pillow and numpy alone.

transformers' own image processors want torchvision for many models, and return floats: four times the bytes
between the workers and the device. What stands in a checkpoint's `preprocessor_config.json` is read
here instead, and followed to the pixel. Subtracting the mean happens on the device (`placement.Normaliser`).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from itmfeat.errors import DataError, UsageError, unknown
from itmfeat_extract.backbones.base import Fingerprint
from itmfeat_extract.backbones.hub import read_json

ORIENTATION = 0x0112  # the EXIF tag

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]
DETECTOR: dict[str, Any] = {
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "resample": 2,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
# What a processor of transformers does where its file does not say, by the name before `ImageProcessor`.
# An integer size means the shortest edge for some and a square for others.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "size": {"shortest_edge": 224},
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "Bit": {
        "size": {"shortest_edge": 224},
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "ViT": {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": HALF,
        "image_std": HALF,
    },
    "Siglip": {
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": HALF,
        "image_std": HALF,
    },
    "ConvNext": {
        "size": {"shortest_edge": 384},
        "crop_pct": 224 / 256,
        "resample": 3,
        "image_mean": HALF,
        "image_std": HALF,
    },
    "Siglip2": {
        "size": {},  # follows the picture
        "patch_size": 16,
        "max_num_patches": 256,
        "resample": 2,
        "image_mean": HALF,
        "image_std": HALF,
    },
    # transformers has this one for torchvision alone, which resizes after the division by 255: no rounding.
    "DINOv3ViT": {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    "Detr": DETECTOR,
    "ConditionalDetr": DETECTOR,
    "DeformableDetr": DETECTOR,
    "GroundingDino": DETECTOR,
    "RTDetr": {"size": {"height": 640, "width": 640}, "resample": 2, "do_normalize": False}
    | {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
}
RESIZES = ("crop", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop; then (pixel * rescale - mean) / std on the device."""

    resize: int | tuple[int, int]  # the shortest edge, or (height, width) whatever the proportions
    crop: tuple[int, int] | None  # (height, width) cut from the centre
    resample: Image.Resampling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    longest: int | None = None  # the shortest edge gets smaller where the longest would exceed this
    patches: tuple[int, int] | None = None  # a patch's edge, and the most patches: then `resize` is unused

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where they depend on the picture."""
        if self.crop is not None:
            return self.crop
        if self.patches is not None:
            return None
        return None if isinstance(self.resize, int) else self.resize

    def changed(self, image_size: int | None, resize: str | None) -> "Preprocessing":
        """For pictures of another size (of the shortest edge where sizes vary), cropped or squashed."""
        if resize not in (None, *RESIZES):
            raise unknown("way to resize", resize, list(RESIZES))
        if image_size is not None and not 1 <= image_size <= 4096:
            raise UsageError(f"the image size must be 1 to 4096 pixels, not {image_size}")
        if image_size is None and resize is None:
            return self
        if self.patches is not None:
            return self._repatched(self.patches[0], image_size, resize)
        if self.longest is not None and isinstance(self.resize, int):
            return self._rescaled(self.resize, self.longest, image_size or self.resize, resize)
        assert self.size is not None
        height, width = (image_size, image_size) if image_size else self.size
        if (resize or self.way) == "squash":
            return replace(self, resize=(height, width), crop=None)
        edge = max(height, width)
        if self.crop is not None and isinstance(self.resize, int):  # the same margin is cut
            edge = round(self.resize * edge / max(self.crop))
        return replace(self, resize=edge, crop=(height, width))

    def _rescaled(self, shortest: int, longest: int, size: int, resize: str | None) -> "Preprocessing":
        if resize == "crop":
            raise UsageError("a detector sees whole pictures, as its boxes are parts of them: leave crop out")
        if resize == "squash":
            return replace(self, resize=(size, size), longest=None)
        return replace(self, resize=size, longest=round(longest * size / shortest))

    def _repatched(self, edge: int, size: int | None, resize: str | None) -> "Preprocessing":
        if resize is not None or size is None:
            raise UsageError("this model takes pictures in their own proportions: leave out --resize")
        if size < edge:
            raise UsageError(f"a patch has {edge} pixels an edge: take a larger --image-size than {size}")
        return replace(self, patches=(edge, (size // edge) ** 2))

    @property
    def way(self) -> str:
        """`squash` to the size, `crop` the centre, or keep the proportions: by `edges` or `patches`."""
        if self.patches is not None:
            return "patches"
        if not isinstance(self.resize, int):
            return "squash"
        return "crop" if self.longest is None else "edges"

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any picture -> pixels (H, W, 3)."""
        image = to_rgb(image)
        height, width = self.resized(image.height, image.width)
        if (image.width, image.height) != (width, height):
            image = image.resize((width, height), self.resample)
        if self.crop is not None and (height, width) != self.crop:
            image = _centre(image, *self.crop)
        return np.array(image)

    def fingerprint(self) -> Fingerprint:
        """Every number that decides a pixel's value."""
        edges: Any = self.resize if self.longest is None else (self.resize, self.longest)
        edges = self.patches or edges
        size: Fingerprint = {"size": list(self.size)} if self.size else {}
        return {
            "resize": self.way,
            "resize_to": edges if isinstance(edges, int) else list(edges),
            **size,
            "resample": self.resample.name.lower(),
            "rescale": self.rescale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop of an upright picture of that size."""
        if self.patches is not None:
            return _whole_patches(height, width, *self.patches)
        if not isinstance(self.resize, int):
            return self.resize
        shortest, ratio = float(self.resize), max(height, width) / min(height, width)
        if self.longest is not None and ratio * shortest > self.longest:
            shortest = self.longest * min(height, width) / max(height, width)
        if min(height, width) == round(shortest) and self.longest is not None:
            return height, width
        longest = int(shortest * max(height, width) / min(height, width))
        return (longest, round(shortest)) if width <= height else (round(shortest), longest)


def _whole_patches(height: int, width: int, edge: int, most: int) -> tuple[int, int]:
    """The largest size of about these proportions that is made of whole patches, at most so many.

    The scale is found by halving an interval, whose ends and width are those of transformers for
    SigLIP 2: another way would differ where rounding decides.
    """

    def patches(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / edge)), max(1, math.ceil(width * scale / edge))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(patches(middle)) <= most else (low, middle)
    rows, columns = patches(low)
    return rows * edge, columns * edge


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB from any mode: as a viewer would show it, transparency on white.

    Sixteen bits of grey keep their upper eight: Pillow alone would clip everything above 255 to white.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode == "F":
        image = image.convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre; what lies beyond a smaller picture is black."""
    # Rounds down where there is too much and where there is too little, as transformers does.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read(folder: Path, default: str) -> Preprocessing:
    """The preprocessing that a checkpoint's folder asks for; `default` is its family's processor."""
    config = _processor_config(folder)
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or default
    kind = str(kind).split("ImageProcessor")[0].split("FeatureExtractor")[0]
    if kind not in DEFAULTS:
        known = ", ".join(DEFAULTS)
        raise DataError(f"{folder.name}: no image processor {kind!r} here; known are {known}")
    given = {key: value for key, value in config.items() if value is not None}
    try:
        return _preprocessing(DEFAULTS[kind] | given, DEFAULTS[kind]["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder.name}: its image preprocessing cannot be followed ({error}): a fixed height and "
            "width are needed"
        ) from error


def _preprocessing(config: dict[str, Any], default: dict[str, int]) -> Preprocessing:
    """The preprocessing of a processor whose usual size is `default`: that tells what a bare number means."""
    by_edge, detects = "shortest_edge" in default, "longest_edge" in default
    if not config.get("do_resize", True) or (config.get("do_pad", False) and not detects):
        raise ValueError("it does not resize, or pads")
    patches = (int(config["patch_size"]), int(config["max_num_patches"])) if not default else None
    size = config["size"] if default else {"height": 0, "width": 0}
    if isinstance(size, int):
        size = {"shortest_edge": size} if by_edge else {"height": size, "width": size}
    crop = _height_width(config["crop_size"]) if config.get("do_center_crop") else None
    longest = size.get("longest_edge", config.get("max_size", 1333)) if detects else None
    resize: int | tuple[int, int]
    if detects and "shortest_edge" in size:
        resize = int(size["shortest_edge"])
    elif "crop_pct" in config:
        resize, crop = _cropped(int(size["shortest_edge"]), config["crop_pct"])
    else:
        resize = int(size["shortest_edge"]) if set(size) == {"shortest_edge"} else _height_width(size)
        longest = None
    if crop is None and longest is None and isinstance(resize, int):
        raise ValueError("the shortest edge alone is given")
    normalise = config.get("do_normalize", True)
    mean, std = (config["image_mean"], config["image_std"]) if normalise else ([0.0] * 3, [1.0] * 3)
    return Preprocessing(
        resize,
        crop,
        Image.Resampling(config["resample"]),
        _triple(mean),
        _triple(std),
        config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        longest,
        patches,
    )


def _cropped(edge: int, part: float) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """As ConvNeXt's models were tested: the centre of small pictures, all of large ones."""
    return (int(edge / part), (edge, edge)) if edge < 384 else ((edge, edge), None)


def _height_width(size: "int | dict[str, int]") -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _processor_config(folder: Path) -> dict[str, Any]:
    """transformers 5 saves what belongs to a whole model in `processor_config.json`, one level deeper."""
    for file, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / file).is_file():
            config = read_json(folder / file)
            found = config if key is None else config.get(key)
            if isinstance(found, dict):
                return found
    raise DataError(f"{folder.name} has no preprocessor_config.json: it says how pictures are resized")
