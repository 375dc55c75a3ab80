"""Detectors on tiny random checkpoints: queries, boxes, scores and labels against a direct forward pass."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PRECISIONS, WORDS, near, normalised, precision, save
from PIL import Image

from itmfeat.cache import FeatureFile, open_cache, verify
from itmfeat.cache.formats import bring, send
from itmfeat.cache.quantization import quantize_cache
from itmfeat.cache.subset import subset
from itmfeat.errors import MissingPackageError, UsageError
from itmfeat_extract import pipeline
from itmfeat_extract.backbones import Encoded, Layers, View, lanes, load_image
from itmfeat_extract.backbones.detectors import WORDS as PROMPT
from itmfeat_extract.backbones.lanes import encode_pictures
from itmfeat_extract.extraction import extract
from itmfeat_extract.tokens import TokenPolicy

transformers = pytest.importorskip("transformers")

STAGES = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 7,
    "num_labels": 4,
}
RTDETR = {
    **{key: value for key, value in DETR.items() if key not in ("encoder_ffn_dim", "decoder_ffn_dim")},
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 8, 16],
    "feat_strides": [8, 16, 32],
    "encoder_ffn_dim": 16,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 16,
    "num_denoising": 0,
}
PYRAMID = ["stage2", "stage3", "stage4"]
WIDE = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), np.uint8)
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def resnet(stages: list[str]) -> Any:
    return transformers.ResNetConfig(**STAGES, out_features=stages)


def rt_resnet() -> Any:
    return transformers.RTDetrResNetConfig(**STAGES, out_features=PYRAMID)


def hgnet() -> Any:
    eights = [8, 8, 8, 8]
    return transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=eights,
        stage_mid_channels=eights,
        stage_out_channels=[8, 8, 8, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        embedding_size=8,
        out_features=PYRAMID,
    )


def grounding(config: str) -> Any:
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=PYRAMID,
    )
    bert = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
    )
    options = {key: value for key, value in DETR.items() if key != "num_labels"}
    return getattr(transformers, config)(backbone_config=swin, text_config=bert, **options)


def detr(config: str, stages: list[str], **options: Any) -> Any:
    kind = getattr(transformers, config)
    return kind(backbone_config=resnet(stages), use_timm_backbone=False, **DETR, **options)


DETECTORS = {
    "detr": ("DetrForObjectDetection", lambda: detr("DetrConfig", ["stage4"])),
    "conditional detr": (
        "ConditionalDetrForObjectDetection",
        lambda: detr("ConditionalDetrConfig", ["stage4"]),
    ),
    "deformable detr": (
        "DeformableDetrForObjectDetection",
        lambda: detr("DeformableDetrConfig", PYRAMID, num_feature_levels=3),
    ),
    "rt-detr": (
        "RTDetrForObjectDetection",
        lambda: transformers.RTDetrConfig(backbone_config=rt_resnet(), **RTDETR),
    ),
    "rt-detr v2": (
        "RTDetrV2ForObjectDetection",
        lambda: transformers.RTDetrV2Config(backbone_config=rt_resnet(), **RTDETR),
    ),
    "d-fine": (
        "DFineForObjectDetection",
        lambda: transformers.DFineConfig(backbone_config=hgnet(), **RTDETR),
    ),
    "grounding dino": ("GroundingDinoForObjectDetection", lambda: grounding("GroundingDinoConfig")),
    "mm grounding dino": ("MMGroundingDinoForObjectDetection", lambda: grounding("MMGroundingDinoConfig")),
}


def checkpoint(case: str, folder: Path) -> Any:
    architecture, config = DETECTORS[case]
    return save(architecture, config(), folder, image_processor_type="DetrImageProcessor", size=SIZE)


def prompted(folder: Path) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The words as a user would pass them on, and the number of the word of each token by counting stops."""
    text = " . ".join(PROMPT.split(", ")) + " ."
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    stops = (tokens["input_ids"][0] == WORDS.index(".")).long()
    words = {name: tokens[name].expand(len(WIDE), -1) for name in ("input_ids", "attention_mask")}
    return words, (stops.cumsum(0) - stops).clamp(max=79).tolist()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", DETECTORS)
def test_detectors_equal_the_model(
    case: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(case, tmp_path)
    words, owners = prompted(tmp_path) if "grounding" in case else ({}, [])
    capfd.readouterr()
    backbone = load_image(f"hf:{tmp_path}", "cpu", dtype)
    with torch.no_grad(), precision(dtype):
        # One by one, as it is computed here: what these models choose hangs on the last bit of bfloat16.
        pixels = [backbone.normalise(torch.from_numpy(WIDE[row : row + 1])) for row in range(3)]  # type: ignore[attr-defined]
        answers = [
            model(pixel_values=each, **{name: value[:1] for name, value in words.items()}) for each in pixels
        ]
    assert torch.allclose(torch.cat(pixels), normalised(WIDE), atol=1e-5)
    encoded = backbone.encode(torch.from_numpy(WIDE))

    assert (backbone.dim, backbone.regions, backbone.grid, backbone.boxed) == (32, 7, None, True)
    assert (backbone.pooled_dim, encoded.pooled) == (0, None)
    near(encoded.vectors, torch.cat([answer.last_hidden_state for answer in answers]), dtype)
    assert encoded.boxes is not None
    assert encoded.scores is not None
    assert encoded.labels is not None
    for row, answer in enumerate(answers):
        for query in range(7):
            x, y, width, height = answer.pred_boxes[0, query].float().tolist()
            box = np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, 1)
            np.testing.assert_allclose(encoded.boxes[row, query].numpy(), box, atol=1e-5)
            logits = answer.logits[0, query].float()
            chances = logits.softmax(0)[:-1] if case == "detr" else logits.sigmoid()
            np.testing.assert_allclose(encoded.scores[row, query].item(), chances.max().item(), atol=1e-5)
            best = int(chances.argmax())
            assert encoded.labels[row, query].item() == (owners[best] if owners else best)
    classes = backbone.fingerprint()["classes"]
    expected = PROMPT.split(", ") if owners else [f"LABEL_{number}" for number in range(4)]
    assert classes == expected
    assert capfd.readouterr() == ("", "")


def test_the_best_queries_by_falling_score(tmp_path: Path) -> None:
    checkpoint("detr", tmp_path)
    backbone = load_image(f"hf:{tmp_path}", "cpu")
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2, 0.0, 0.3], [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.8]])
    vectors = torch.randn(2, 7, 32)
    boxes, labels = torch.rand(2, 7, 4), torch.arange(14).view(2, 7)
    policy = TokenPolicy.parse("topk:3")
    assert (policy.regions(backbone), policy.boxed(backbone), policy.suffix) == (3, True, "@topk3")
    kept = policy.apply(Encoded(vectors, None, boxes, scores, labels), backbone)
    assert kept["labels"].tolist() == [1, 3, 2, 7 + 6, 7 + 0, 7 + 1]
    assert kept["scores"].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.8, 0.7, 0.6])
    assert torch.equal(kept["features"], vectors.flatten(0, 1)[kept["labels"]])
    assert torch.equal(kept["boxes"], boxes.flatten(0, 1)[kept["labels"]])
    with pytest.raises(UsageError, match="topk:8 is more than the 7 regions"):
        TokenPolicy.parse("topk:8").regions(backbone)
    with pytest.raises(UsageError, match="has no grid of regions"):
        TokenPolicy.parse("grid:2x2").regions(backbone)
    assert not TokenPolicy.parse("pooled").boxed(backbone)


@pytest.mark.parametrize("pixels", [None, 2 * 64 * 64])
def test_pictures_of_any_proportions_do_not_see_each_other(
    pixels: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pixels:
        monkeypatch.setattr(lanes, "BATCH_PIXELS", pixels)  # batches of two of the smallest, else of one
    checkpoint("deformable detr", tmp_path)
    backbone = load_image(f"hf:{tmp_path}", "cpu")
    rng = np.random.default_rng(0)
    pictures = [
        backbone.preprocess(Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)))
        for height, width in ((80, 80), (60, 90), (90, 60), (80, 80), (30, 200), (80, 80))
    ]
    assert [each.shape[:2] for each in pictures] == [
        (64, 64),
        (64, 96),
        (96, 64),
        (64, 64),
        (14, 96),
        (64, 64),
    ]
    together = encode_pictures(backbone, pictures)
    for row, picture in enumerate(pictures):
        alone = backbone.encode(torch.from_numpy(picture)[None])
        for name in ("vectors", "boxes", "scores", "labels"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name


def test_detectors_see_whole_pictures(tmp_path: Path) -> None:
    checkpoint("detr", tmp_path)
    with pytest.raises(UsageError, match="leave out --resize crop"):
        load_image(f"hf:{tmp_path}", "cpu", view=View(resize="crop"))
    with pytest.raises(UsageError, match="leave out --layers"):
        load_image(f"hf:{tmp_path}", "cpu", view=View(layers=Layers((-2,))))
    small = load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=32))
    assert small.preprocess(Image.new("RGB", (200, 100))).shape == (24, 48, 3)
    assert small.fingerprint()["resize_to"] == [32, 48]
    square = load_image(f"hf:{tmp_path}", "cpu", view=View(image_size=32, resize="squash"))
    assert square.preprocess(Image.new("RGB", (200, 100))).shape == (32, 32, 3)


@pytest.mark.skipif(bool(find_spec("timm")), reason="timm is installed")
def test_a_backbone_of_timm_needs_the_package(tmp_path: Path) -> None:
    import json

    checkpoint("detr", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet50"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingPackageError, match="needs timm: pip install timm"):
        load_image(f"hf:{tmp_path}", "cpu")


def test_regions_come_into_the_cache(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: pictures of several shapes, boxes, scores, labels, and a part of the cache."""
    model, cache = tmp_path / "model", tmp_path / "cache"
    checkpoint("rt-detr", model)
    monkeypatch.setattr(pipeline, "IMAGE_RANGE", 8)  # two ranges
    options: dict[str, Any] = {
        "image_backbone": f"hf:{model}",
        "text_backbone": "none",
        "limit": 15,
        "device": "cpu",
    }
    extract("demo", pictures, cache, tokens="topk:3", image_size=32, **options)
    extract("demo", pictures, cache, tokens="pooled", image_size=32, **options)
    assert verify(cache) == []
    found = open_cache(cache)
    assert found.backbones("image") == ["hf-model@32@pooled", "hf-model@32@topk3"]
    file = found.open("image", "hf-model@32@topk3")
    assert (file.uniform, file.dim, file.attributes["schema"], file.attributes["tokens"]) == (
        3,
        32,
        2,
        "topk:3",
    )
    scores = file.array("scores").reshape(15, 3)
    assert (np.diff(scores, axis=1) <= 0).all()
    boxes, labels = file.array("boxes"), file.array("labels")
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((labels >= 0) & (labels < 4)).all()
    assert labels.dtype == np.int32
    assert file.fingerprint["classes"] == [f"LABEL_{number}" for number in range(4)]
    assert found.open("image", "hf-model@32@pooled").attributes["schema"] == 1

    part = open_cache(subset(cache, tmp_path / "part", images=5)).open("image", "hf-model@32@topk3")
    assert set(part.extents) == set(file.extents)
    rows = [
        found.index.image_id.tolist().index(name)
        for name in open_cache(tmp_path / "part").index.image_id.tolist()
    ]
    np.testing.assert_array_equal(part.array("labels").reshape(5, 3), labels.reshape(15, 3)[rows])


def test_labels_survive_int8_and_an_archive(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    model = tmp_path / "model"
    checkpoint("detr", model)
    options: dict[str, Any] = {"image_backbone": f"hf:{model}", "text_backbone": "none", "limit": 4}
    cache = Path(str(extract("demo", pictures, tmp_path / "cache", image_size=32, **options)))
    quantize_cache(cache)
    send("archive", cache, tmp_path / "packed")
    back = bring("archive", tmp_path / "packed", tmp_path / "back")
    assert verify(back) == []
    labels = open_cache(cache).open("image", "hf-model@32").array("labels")
    for name in ("hf-model@32", "hf-model@32-int8"):
        np.testing.assert_array_equal(open_cache(back).open("image", name).array("labels"), labels)


def test_a_damaged_label_is_found(pictures: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    checkpoint("detr", model)
    options: dict[str, Any] = {"image_backbone": f"hf:{model}", "text_backbone": "none", "limit": 4}
    made = Path(str(extract("demo", pictures, tmp_path / "cache", image_size=32, **options)))
    path = made / "image" / "hf-model@32.h5"
    content = bytearray(path.read_bytes())
    content[FeatureFile(path).extents["labels"].offset] ^= 1
    path.write_bytes(content)
    assert len(verify(made)) == 1
