"""Pixels: equal to transformers' own image processors, whatever a picture's mode."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.backbones.placement import Normaliser, place
from itmfeat_extract.backbones.preprocess import Preprocessing, read, to_rgb

SIZES = [(97, 61), (61, 97), (40, 40), (333, 50), (20, 31)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def folder(path: Path, **config: Any) -> Path:
    (path / "preprocessor_config.json").write_text(json.dumps(config))
    return path


CLIP_OLD = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "size": 40,
    "crop_size": 32,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
CLIP_NEW = CLIP_OLD | {
    "image_processor_type": "CLIPImageProcessorFast",
    "size": {"shortest_edge": 33},
    "crop_size": {"height": 24, "width": 31},
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "data_format": None,
}
VIT_OLD = {"size": 32, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
DINOV2 = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SIGLIP = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 48, "width": 32},
    "resample": 2,
}


@pytest.mark.parametrize(
    ("processor", "default", "config"),
    [
        ("CLIPImageProcessorPil", "CLIP", CLIP_OLD),
        ("CLIPImageProcessorPil", "CLIP", CLIP_NEW),
        ("CLIPImageProcessorPil", "CLIP", {}),
        ("ViTImageProcessorPil", "ViT", VIT_OLD),
        ("ViTImageProcessorPil", "ViT", {"do_normalize": False}),
        ("BitImageProcessorPil", "ViT", DINOV2),
        ("SiglipImageProcessorPil", "Siglip", SIGLIP),
        ("ConvNextImageProcessorPil", "ConvNext", {"size": {"shortest_edge": 56}, "crop_pct": 0.875}),
        ("ConvNextImageProcessorPil", "ConvNext", {"size": 50}),
        ("ConvNextImageProcessorPil", "ConvNext", {}),
        ("RTDetrImageProcessorPil", "RTDetr", {}),
        ("RTDetrImageProcessorPil", "RTDetr", {"size": {"height": 64, "width": 48}, "do_normalize": True}),
    ],
)
def test_equals_the_processor_of_transformers(
    processor: str, default: str, config: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    theirs = getattr(transformers, processor)(**config)
    ours = read(folder(tmp_path, **config), default)
    normalise = Normaliser(ours, place("cpu", None))
    for size in SIZES:
        image = picture(*size)
        expected = theirs(images=image, return_tensors="np")["pixel_values"][0]  # (3, H, W)
        pixels = ours.apply(image)
        assert pixels.shape == (*ours.size, 3)
        assert pixels.dtype == np.uint8
        found = normalise(torch.from_numpy(pixels)[None])[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["Detr", "ConditionalDetr", "DeformableDetr", "GroundingDino"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"shortest_edge": 61, "longest_edge": 103}},
        {"size": {"shortest_edge": 40, "longest_edge": 90}, "do_pad": True},
        {"size": 61, "max_size": 103},
        {"size": {"height": 30, "width": 50}, "resample": 3},
    ],
)
def test_equals_the_processors_of_detectors(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Sizes that follow the picture's proportions; one picture is never padded."""
    import transformers

    theirs = getattr(transformers, f"{family}ImageProcessorPil")(**config)
    ours = read(folder(tmp_path, **config), family)
    normalise = Normaliser(ours, place("cpu", None))
    for size in [*SIZES, (61, 61), (200, 61), (61, 107)][:: 1 if config else 3]:
        image = picture(*size)
        expected = theirs(images=image, return_tensors="np")
        assert expected["pixel_mask"].all()
        found = normalise(torch.from_numpy(ours.apply(image))[None])[0]
        np.testing.assert_allclose(found.numpy(), expected["pixel_values"][0], atol=1e-5)


def test_dinov3_is_squashed_as_its_processor_says(tmp_path: Path) -> None:
    """transformers needs torchvision for this one, so there is nothing to compare with but its numbers."""
    found = read(folder(tmp_path, image_processor_type="DINOv3ViTImageProcessorFast"), "ViT")
    assert (found.resize, found.crop, found.resample) == ((224, 224), None, Image.Resampling.BILINEAR)
    assert found.mean == (0.485, 0.456, 0.406)


def test_another_size_or_crop() -> None:
    plain = Preprocessing((32, 32), None, Image.Resampling.BICUBIC, (0.5,) * 3, (0.5,) * 3)
    margin = Preprocessing(40, (32, 32), Image.Resampling.BICUBIC, (0.5,) * 3, (0.5,) * 3)
    edges = Preprocessing(80, None, Image.Resampling.BICUBIC, (0.5,) * 3, (0.5,) * 3, longest=120)

    def told(found: Preprocessing) -> tuple[object, object, object]:
        return found.resize, found.crop, found.longest

    assert plain.changed(None, None) is plain
    assert told(plain.changed(64, None)) == ((64, 64), None, None)
    assert told(plain.changed(None, "crop")) == (32, (32, 32), None)
    assert told(margin.changed(64, None)) == (80, (64, 64), None)
    assert told(margin.changed(None, "squash")) == ((32, 32), None, None)
    assert told(margin.changed(64, "crop")) == (80, (64, 64), None)
    assert told(edges.changed(40, None)) == (40, None, 60)
    assert told(edges.changed(None, "squash")) == ((80, 80), None, None)
    assert edges.fingerprint()["resize"] == "edges"
    assert edges.fingerprint()["resize_to"] == [80, 120]
    assert "size" not in edges.fingerprint()
    with pytest.raises(UsageError, match="leave crop out"):
        edges.changed(None, "crop")


def test_reads_the_file_of_a_whole_processor(tmp_path: Path) -> None:
    nested = {"image_processor": SIGLIP, "processor_class": "SiglipProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read(tmp_path, "Siglip").resize == (48, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "GLPNImageProcessor"}, "no image processor 'GLPN' here"),
        ({"image_processor_type": 7}, "no image processor '7' here"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "fixed height and width"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "fixed height and width"),
        ({"do_resize": False}, "does not resize"),
        ({"resample": 17}, "17"),
        ({"image_mean": [0.5]}, "cannot be followed"),
    ],
)
def test_refuses_what_it_cannot_follow(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(folder(tmp_path, **config), "CLIP")


def test_a_folder_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no preprocessor_config\.json"):
        read(tmp_path, "CLIP")


def test_fingerprint_tells_crop_from_squash() -> None:
    crop = Preprocessing(40, (32, 32), Image.Resampling.BICUBIC, (0.5,) * 3, (0.5,) * 3)
    squash = Preprocessing((32, 32), None, Image.Resampling.BICUBIC, (0.5,) * 3, (0.5,) * 3)
    assert crop.fingerprint()["resize"] == "crop"
    assert squash.fingerprint() == {
        "resize": "squash",
        "resize_to": [32, 32],
        "size": [32, 32],
        "resample": "bicubic",
        "rescale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    json.dumps(crop.fingerprint())


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "LA", "F", "I"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = np.full((4, 5), 200, np.uint8)
    if mode in ("F", "I"):
        image = Image.fromarray(
            grey.astype(np.float32 if mode == "F" else np.int32) * (256 if mode == "I" else 1)
        )
    else:
        # Pillow reaches Lab through a colour profile alone.
        image = (
            Image.new("LAB", (5, 4)) if mode == "LAB" else Image.fromarray(grey).convert("RGB").convert(mode)
        )
    assert image.mode == mode
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (5, 4))
    if mode not in ("1", "LAB"):
        assert np.abs(np.asarray(rgb).astype(int) - 200).max() <= 4


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_upper_bits(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = Image.fromarray(values)
    if dtype == "<u2":
        image.save(tmp_path / "grey.png")
    else:
        image = image.convert("I").convert("I;16B")
        image.save(tmp_path / "grey.tif")
    with Image.open(next(tmp_path.iterdir())) as opened:
        assert opened.mode == ("I;16" if dtype == "<u2" else "I;16B")
        rgb = np.asarray(to_rgb(opened))
    assert rgb[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparency_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((1, 0))
    for each in (image, palette):
        rgb = to_rgb(each)
        assert rgb.getpixel((0, 0)) == (255, 0, 0)
        assert rgb.getpixel((1, 0)) == (255, 255, 255)


def test_pictures_stand_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        rgb = to_rgb(opened)
    assert rgb.size == (2, 4)
    assert rgb.getpixel((1, 0)) == (255, 255, 255)
