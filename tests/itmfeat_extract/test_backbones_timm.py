"""Models of timm: equal to the model itself, and its pixels. It needs torchvision, so `dev` leaves it out."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PRECISIONS, near, precision
from PIL import Image

from itmfeat.errors import DataError, MissingPackageError, UsageError
from itmfeat_extract.backbones import Layers, View, load_image, load_text, slug


def timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision of another build than torch
        pytest.skip(f"needs the extra timm: {error}")
    return timm


def save(name: str, folder: Path) -> Any:
    """A random model with its configuration, as timm puts it on the hub."""
    library = timm()
    torch.manual_seed(0)
    model = library.create_model(name, pretrained=False).eval()
    library.models.save_for_hf(model, folder, safe_serialization=True)
    return model


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "prefix", "grid"),
    [("test_vit", 1, (10, 10)), ("test_convnext", 0, (5, 5)), ("test_resnet", 0, (5, 5))],
)
def test_equals_the_model(name: str, prefix: int, grid: tuple[int, int], dtype: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model")
    backbone = load_image(f"timm:{tmp_path / 'model'}", "cpu", dtype)
    assert backbone.grid == grid
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (170, 200, 3), np.uint8))
    pixels = torch.from_numpy(backbone.preprocess(picture))[None]
    config = timm().data.resolve_model_data_config(model)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    with torch.no_grad(), precision(dtype):
        tokens = model.forward_features(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
        pooled = model.forward_head(tokens, pre_logits=True)
    expected = tokens[:, prefix:] if tokens.dim() == 3 else tokens.flatten(2).transpose(1, 2)
    encoded = backbone.encode(pixels)
    near(encoded.vectors, expected, dtype)
    assert encoded.pooled is not None
    near(encoded.pooled, pooled, dtype)
    told = backbone.fingerprint()
    assert (told["backbone"], told["model"], len(str(told["weights"]))) == ("timm:model", name, 64)
    with pytest.raises(UsageError, match="tells only its last answer"):
        load_image(f"timm:{tmp_path / 'model'}", "cpu", view=View(layers=Layers((-2,))))


def test_pixels_equal_those_of_timm(tmp_path: Path) -> None:
    """By its own transforms, which are torchvision's; margins of this size are even."""
    model = save("test_vit", tmp_path / "model")
    config = timm().data.resolve_model_data_config(model)
    theirs = timm().data.create_transform(**config)
    backbone = load_image(f"timm:{tmp_path / 'model'}", "cpu")
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    for size in [(168, 168), (336, 336), (336, 672)]:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        expected = theirs(picture).permute(1, 2, 0) * std + mean
        found = torch.from_numpy(backbone.preprocess(picture)) / 255
        assert (found - expected).abs().max() < 1 / 255


def test_what_is_no_checkpoint_of_timm(tmp_path: Path) -> None:
    save("test_resnet", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(DataError, match="no checkpoint of timm: take hf:ID_OR_FOLDER"):
        load_image(f"timm:{tmp_path / 'model'}", "cpu")
    (tmp_path / "model" / "config.json").write_text('{"architecture": "resnot"}')
    with pytest.raises(DataError, match="cannot be loaded by timm: Unknown model"):
        load_image(f"timm:{tmp_path / 'model'}", "cpu")


def test_without_timm_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itmfeat\[timm\]'"):
        load_image(f"timm:{tmp_path}", "cpu")
    monkeypatch.delitem(sys.modules, "timm")
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "timm").mkdir()  # stands in for one beside a torchvision of another build
    (tmp_path / "timm" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms is not there')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"a torchvision that fits torch .*nms is not there"):
        load_image(f"timm:{tmp_path}", "cpu")
    with pytest.raises(UsageError, match="unknown text backbone"):
        load_text(f"timm:{tmp_path}", "cpu")
    assert slug("timm:resnet50.a1_in1k") == "timm-resnet50.a1_in1k"


def test_open_clip_is_taken_in_the_form_of_transformers() -> None:
    with pytest.raises(UsageError, match=r"take openclip-b32, or hf:ID as hf:laion/CLIP"):
        load_image("open_clip:ViT-B-32/laion2b_s34b_b79k", "cpu")
