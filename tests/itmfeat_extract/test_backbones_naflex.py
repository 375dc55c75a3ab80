"""SigLIP 2 with NaFlex: as many patches as a picture's proportions give, equal to the padded model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PRECISIONS, TEXT, near, precision, save
from PIL import Image
from processes import call

from itmfeat.cache import open_cache
from itmfeat.errors import DataError, UsageError
from itmfeat_extract.backbones import Encoded, Layers, View, load_image, load_text
from itmfeat_extract.backbones.lanes import encode_pictures
from itmfeat_extract.backbones.placement import Normaliser, place
from itmfeat_extract.backbones.preprocess import read
from itmfeat_extract.extraction import extract
from itmfeat_extract.tokens import TokenPolicy

transformers = pytest.importorskip("transformers")

PATCH, MOST = 4, 36
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Siglip2ImageProcessor",
    "size": None,
    "patch_size": PATCH,
    "max_num_patches": MOST,
    "resample": 2,
}
SIZES = [(97, 61), (61, 97), (40, 40), (333, 50), (20, 31), (3, 3), (480, 640), (1, 70)]

EVERY = np.arange(len(SIZES))


def vision() -> Any:
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.Siglip2VisionConfig(patch_size=PATCH, num_patches=16, **size)


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in SIZES]


def padded(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers gives its model: all pictures padded to `MOST` patches, and masked."""
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(folder)
    return dict(processor(images=pictures(), return_tensors="pt"))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_equals_the_padded_and_masked_model(dtype: str, tmp_path: Path) -> None:
    model = save("Siglip2VisionModel", vision(), tmp_path, **PROCESSOR)
    inputs = padded(tmp_path)
    with torch.no_grad(), precision(dtype):
        answer = model(**inputs)
    backbone = load_image(f"hf:{tmp_path}", "cpu", dtype)
    assert (backbone.dim, backbone.pooled_dim, backbone.regions, backbone.grid) == (24, 24, MOST, (6, 6))

    encoded = encode_pictures(backbone, [backbone.preprocess(picture) for picture in pictures()])

    assert encoded.grids is not None
    assert torch.equal(encoded.grids, inputs["spatial_shapes"])
    assert len({tuple(grid) for grid in encoded.grids.tolist()}) > 4
    counts = inputs["pixel_attention_mask"].sum(1).tolist()
    for row, count in enumerate(counts):
        near(encoded.vectors[row, :count], answer.last_hidden_state[row, :count], dtype)
        assert not encoded.vectors[row, count:].any()
        assert backbone.cells(*SIZES[row]) == tuple(encoded.grids[row].tolist())  # type: ignore[attr-defined]
    assert encoded.pooled is not None
    near(encoded.pooled, answer.pooler_output, dtype)


@pytest.mark.parametrize("config", [{}, PROCESSOR, {"max_num_patches": 1000, "patch_size": 14}])
def test_pixels_equal_the_processor_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    import json

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    given = {key: value for key, value in config.items() if value is not None and "type" not in key}
    theirs = transformers.Siglip2ImageProcessorPil(**given)
    ours = read(tmp_path, "Siglip2")
    assert ours.patches is not None
    edge, normalise = ours.patches[0], Normaliser(ours, place("cpu", None))
    for picture in pictures():
        expected = theirs(images=picture, return_tensors="np")
        rows, columns = expected["spatial_shapes"][0].tolist()
        pixels = ours.apply(picture)
        assert pixels.shape == (rows * edge, columns * edge, 3)
        found = normalise(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0)  # (H, W, 3)
        patches = expected["pixel_values"][0][: rows * columns].reshape(rows, columns, edge, edge, 3)
        whole = patches.transpose(0, 2, 1, 3, 4).reshape(pixels.shape)
        np.testing.assert_allclose(found.numpy(), whole, atol=2 / 255)  # of a range of 2, so 1/255 of a pixel


def test_policies_of_ragged_grids(tmp_path: Path) -> None:
    save("Siglip2VisionModel", vision(), tmp_path, **PROCESSOR)
    backbone = load_image(f"hf:{tmp_path}", "cpu")
    vectors = torch.arange(2 * MOST * 24.0).view(2, MOST, 24)
    encoded = Encoded(vectors, torch.ones(2, 24), grids=torch.tensor([[2, 4], [6, 6]]))
    every = TokenPolicy.parse("all").apply(encoded, backbone)
    assert torch.equal(every["features"], torch.cat([vectors[0, :8], vectors[1]]))
    pooled = TokenPolicy.parse("pooled").apply(encoded, backbone)["features"]
    torch.testing.assert_close(pooled, torch.stack([vectors[0, :8].mean(0), vectors[1].mean(0)]))
    grid = TokenPolicy.parse("grid:2x2").apply(encoded, backbone)["features"]
    assert grid.shape == (8, 24)
    torch.testing.assert_close(grid[1], vectors[0, 2:4].mean(0))
    torch.testing.assert_close(grid[4], vectors[1, [0, 1, 2, 6, 7, 8, 12, 13, 14]].mean(0))


def test_a_ragged_cache(tmp_path: Path) -> None:
    """Each image has as many vectors as its patches; one that cannot be read has none."""
    save("Siglip2VisionModel", vision(), tmp_path / "model", **PROCESSOR)
    data = tmp_path / "data"
    data.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, picture in enumerate(pictures()):
        picture.save(data / f"{number}.png", exif=turned)
    captions = "".join(f"{number}.png\ta {number}\n" for number in range(len(SIZES)))
    (data / "captions.tsv").write_text("image\tcaption\n" + captions)
    given: dict[str, Any] = {"image_backbone": f"hf:{tmp_path / 'model'}", "text_backbone": "none"}

    extract("folder", data, tmp_path / "cache", **given)
    file = open_cache(tmp_path / "cache").open("image")
    backbone = load_image(given["image_backbone"], "cpu")
    upright = [picture.transpose(Image.Transpose.ROTATE_270) for picture in pictures()]
    expected = [backbone.encode(torch.from_numpy(backbone.preprocess(one))[None]) for one in upright]
    lengths = [int(one.grids.prod()) for one in expected if one.grids is not None]
    assert file.lengths(EVERY).tolist() == lengths
    assert len(set(lengths)) == 3
    whole = torch.cat([one.vectors[0, :length] for one, length in zip(expected, lengths, strict=True)])
    near(torch.tensor(np.array(file.array(), np.float32)), whole, "bfloat16")

    (data / "2.png").write_bytes((data / "2.png").read_bytes()[:200])  # its header can be read
    with pytest.raises(DataError, match=r"2.png cannot be read as an image"):
        extract("folder", data, tmp_path / "other", **given)
    extract("folder", data, tmp_path / "other", on_error="skip", **given)
    other = open_cache(tmp_path / "other").open("image")
    assert other.lengths(EVERY).tolist() == [*lengths[:2], 0, *lengths[3:]]


def test_size_and_layers(tmp_path: Path) -> None:
    model = save("Siglip2VisionModel", vision(), tmp_path, **PROCESSOR)
    larger = load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=41))
    assert (larger.regions, larger.fingerprint()["resize_to"]) == (100, [PATCH, 100])
    inner = load_image(f"hf:{tmp_path}", "cpu", view=View(layers=Layers.parse("-2")))
    pixels = inner.preprocess(pictures()[0])
    with torch.no_grad():
        inputs = {name: value[:1] for name, value in padded(tmp_path).items()}
        hidden = model(**inputs, output_hidden_states=True).hidden_states[1]
    count = int(inputs["pixel_attention_mask"].sum())
    near(inner.encode(torch.from_numpy(pixels)[None]).vectors[0, :count], hidden[0, :count], "float32")
    for view, said in [
        (View(resize="crop"), "own proportions: leave out --resize"),
        (View(image_size=3), "a patch has 4 pixels an edge: take a larger --image-size than 3"),
    ]:
        with pytest.raises(UsageError, match=said):
            load_image(f"hf:{tmp_path}", "cpu", view=view)


def test_another_processor_is_named(tmp_path: Path) -> None:
    save("Siglip2VisionModel", vision(), tmp_path, **PROCESSOR | {"patch_size": 8})
    with pytest.raises(DataError, match="does not cut pictures into patches of 4 pixels"):
        load_image(f"hf:{tmp_path}", "cpu")


def test_its_text_is_padded_to_full_length(tmp_path: Path) -> None:
    config = transformers.Siglip2TextConfig(**TEXT, projection_size=8)
    model = save("Siglip2TextModel", config, tmp_path)
    backbone = load_text(f"hf:{tmp_path}", "cpu")
    found = backbone.tokenize(["A DOG runs"]).ids[0]
    full = torch.tensor([found + [0] * (12 - len(found))])
    with torch.no_grad():
        answer = model(input_ids=full)
    encoded = backbone.encode(full, torch.tensor([len(found)]))
    near(encoded.vectors, answer.last_hidden_state, "float32")
    assert encoded.pooled is not None
    near(encoded.pooled, answer.pooler_output, "float32")


def test_the_command_lists_it() -> None:
    assert "siglip2-naflex" in call("backbones").stdout
