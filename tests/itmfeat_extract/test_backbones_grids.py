"""Families whose stages halve the picture: maps and tokens as a grid; image size, crop and layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PIXELS, PRECISIONS, TEXT, VISION, near, normalised, precision, save
from PIL import Image

from itmfeat.errors import UsageError
from itmfeat_extract.backbones import Layers, View, load_image, load_text

transformers = pytest.importorskip("transformers")

STAGES = {"hidden_sizes": [6, 8, 10, 12], "depths": [1, 1, 1, 1]}
SWIN = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
WIDE = np.random.default_rng(1).integers(0, 256, (5, 64, 96, 3), np.uint8)
PROCESSOR_WIDE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 96}}

GRIDS = {
    "convnext": ("ConvNextModel", lambda: transformers.ConvNextConfig(**STAGES), 12),
    "convnextv2": ("ConvNextV2Model", lambda: transformers.ConvNextV2Config(**STAGES), 12),
    "resnet": (
        "ResNetModel",
        lambda: transformers.ResNetConfig(**STAGES, embedding_size=6, layer_type="basic"),
        12,
    ),
    "resnet for classification": (
        "ResNetForImageClassification",
        lambda: transformers.ResNetConfig(**STAGES, embedding_size=6),
        12,
    ),
    "swin": ("SwinModel", lambda: transformers.SwinConfig(image_size=64, **SWIN), 64),
    "swinv2": ("Swinv2Model", lambda: transformers.Swinv2Config(image_size=64, **SWIN), 64),
    "dinov3 convnext": ("DINOv3ConvNextModel", lambda: transformers.DINOv3ConvNextConfig(**STAGES), 12),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", GRIDS)
def test_grids_equal_the_model(
    case: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    architecture, config, dim = GRIDS[case]
    model = save(architecture, config(), tmp_path, **PROCESSOR_WIDE)
    inner = model.resnet if architecture == "ResNetForImageClassification" else model
    with torch.no_grad(), precision(dtype):
        answer = inner(pixel_values=normalised(WIDE))
    capfd.readouterr()

    backbone = load_image(f"hf:{tmp_path}", "cpu", dtype)
    encoded = backbone.encode(torch.from_numpy(WIDE))

    assert (backbone.grid, backbone.regions) == ((2, 3), 6)
    assert (backbone.dim, backbone.pooled_dim, backbone.boxed) == (dim, dim, False)
    expected = answer.last_hidden_state
    if expected.dim() == 4:
        for row in range(2):
            for column in range(3):
                near(encoded.vectors[:, 3 * row + column], expected[:, :, row, column], dtype)
    else:
        near(encoded.vectors, expected[:, 1:] if case == "dinov3 convnext" else expected, dtype)
    assert encoded.pooled is not None
    near(encoded.pooled, answer.pooler_output.reshape(5, dim), dtype)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("architecture", ["ViTModel", "CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_another_image_size_stretches_the_positions(architecture: str, tmp_path: Path) -> None:
    config = {"ViTModel": "ViTConfig", "SiglipVisionModel": "SiglipVisionConfig"}.get(
        architecture, "CLIPVisionConfig"
    )
    model = save(architecture, getattr(transformers, config)(**VISION), tmp_path)
    backbone = load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=48))
    assert (backbone.grid, backbone.regions) == ((6, 6), 36)
    pixels = backbone.preprocess(Image.fromarray(PIXELS[0]))
    assert pixels.shape == (48, 48, 3)
    with torch.no_grad():
        answer = model(pixel_values=normalised(pixels[None]), interpolate_pos_encoding=True)
    prefix = 0 if architecture == "SiglipVisionModel" else 1
    found = backbone.encode(torch.from_numpy(pixels)[None])
    near(found.vectors, answer.last_hidden_state[:, prefix:], "float32")
    assert backbone.fingerprint()["size"] == [48, 48]


@pytest.mark.parametrize(
    ("architecture", "config", "size", "near_by"),
    [("ViTModel", "ViTConfig", 50, 48), ("ResNetModel", "ResNetConfig", 50, 64)],
)
def test_sizes_that_do_not_fit_name_the_nearest(
    architecture: str, config: str, size: int, near_by: int, tmp_path: Path
) -> None:
    options = VISION if architecture == "ViTModel" else STAGES | {"embedding_size": 6}
    save(architecture, getattr(transformers, config)(**options), tmp_path, **PROCESSOR_WIDE)
    with pytest.raises(UsageError, match=f"--image-size {near_by}, not {size}"):
        load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=size))
    with pytest.raises(UsageError, match="must be 1 to 4096 pixels, not 0"):
        load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=0))
    with pytest.raises(UsageError, match="unknown way to resize 'squish': did you mean 'squash'"):
        load_image(f"hf:{tmp_path}", "cpu", view=View(resize="squish"))


def test_crop_and_squash_are_recorded(tmp_path: Path) -> None:
    save("ViTModel", transformers.ViTConfig(**VISION), tmp_path)
    crop, squash = (load_image(f"hf:{tmp_path}", "cpu", view=View(resize=way)) for way in ("crop", "squash"))
    assert (crop.fingerprint()["resize"], squash.fingerprint()["resize"]) == ("crop", "squash")
    picture = Image.fromarray(WIDE[0])
    cut = picture.crop((16, 0, 80, 64))  # resized alone it differs at its edges
    assert np.array_equal(crop.preprocess(picture)[:, 2:-2], crop.preprocess(cut)[:, 2:-2])
    assert not np.array_equal(crop.preprocess(picture), squash.preprocess(picture))
    assert [View(resize=way).suffix for way in (None, "crop")] == ["", "@crop"]
    assert View(384, "squash", Layers.parse("mean:-1,-2")).suffix == "@384@squash@mean-1_-2"


def states(answer: Any) -> list[torch.Tensor]:
    return [*answer.hidden_states[:-1], answer.last_hidden_state]


LAYERED = {
    "clip": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**VISION), 1),
    "vit": ("ViTModel", lambda: transformers.ViTConfig(**VISION), 1),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(**VISION), 1),
    "dinov3": ("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**VISION, num_register_tokens=2), 3),
    "siglip": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**VISION), 0),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", LAYERED)
def test_layers_of_images(case: str, dtype: str, tmp_path: Path) -> None:
    architecture, config, prefix = LAYERED[case]
    model = save(architecture, config(), tmp_path)
    with torch.no_grad(), precision(dtype):
        hidden = states(model(pixel_values=normalised(), output_hidden_states=True))
    assert len(hidden) == 3

    def found(layers: str) -> Any:
        backbone = load_image(f"hf:{tmp_path}", "cpu", dtype, View(layers=Layers.parse(layers)))
        assert backbone.fingerprint()["layer"] == layers
        vectors = backbone.encode(torch.from_numpy(PIXELS)).vectors
        assert vectors.shape[2] == backbone.dim
        return vectors

    near(found("-2"), hidden[1][:, prefix:], dtype)
    near(found("0"), hidden[0][:, prefix:], dtype)
    near(found("mean:1,-1"), (hidden[1].float() + hidden[2].float())[:, prefix:] / 2, dtype)
    near(found("concat:-1,1"), torch.cat([hidden[2].float(), hidden[1].float()], -1)[:, prefix:], dtype)


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "CLIPText"])
def test_layers_of_captions(family: str, tmp_path: Path) -> None:
    model = save(f"{family}Model", getattr(transformers, f"{family}Config")(**TEXT), tmp_path)
    backbone = load_text(f"hf:{tmp_path}", "cpu", layers=Layers.parse("concat:-1,1"))
    ids = torch.tensor(backbone.tokenize(["a dog runs"]).ids)
    with torch.no_grad():
        hidden = states(model(input_ids=ids, output_hidden_states=True))
    expected = torch.cat([hidden[-1], hidden[1]], -1)
    encoded = backbone.encode(ids, torch.tensor([ids.shape[1]]))
    near(encoded.vectors, expected, "float32")
    assert backbone.dim == 32
    if encoded.pooled is not None:  # the mean is that of the vectors
        near(encoded.pooled, expected.mean(1), "float32")


@pytest.mark.parametrize("text", ["", "-1,-2", "mean:-1", "mean:", "mean:1,1", "sum:1,2", "1.5", "mean:1, 2"])
def test_layers_are_written_in_one_way(text: str) -> None:
    with pytest.raises(UsageError, match="mean:-1,-2 or concat:-1,-4, not"):
        Layers.parse(text)


def test_layers_that_do_not_exist(tmp_path: Path) -> None:
    save("ViTModel", transformers.ViTConfig(**VISION), tmp_path / "vit")
    with pytest.raises(UsageError, match=r"layer 3 does not exist: this model has 0 .* to 2, or -1 to -3"):
        load_image(f"hf:{tmp_path / 'vit'}", "cpu", view=View(layers=Layers((3,))))
    save("ResNetModel", transformers.ResNetConfig(**STAGES, embedding_size=6), tmp_path / "resnet")
    with pytest.raises(UsageError, match="layers of different sizes: leave out --layers"):
        load_image(f"hf:{tmp_path / 'resnet'}", "cpu", view=View(layers=Layers((-2,))))
    assert [Layers.parse(text).suffix for text in ("-1", "2", "-2", "concat:1,2")] == [
        "",
        "@layer2",
        "@layer-2",
        "@concat1_2",
    ]
