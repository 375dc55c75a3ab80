"""Each transformers family on a tiny random checkpoint, against the library's own forward pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CLS,
    PIXELS,
    PRECISIONS,
    PROCESSOR,
    SEP,
    TEXT,
    VISION,
    WORDS,
    near,
    normalised,
    precision,
    save,
)
from PIL import Image

from itmfeat.errors import DataError
from itmfeat_extract.backbones import load_image, load_text

transformers = pytest.importorskip("transformers")


def clip(text: dict[str, Any] = TEXT) -> Any:
    return transformers.CLIPConfig(
        vision_config=VISION | {"projection_dim": 6},
        text_config=text | {"projection_dim": 6},
        projection_dim=6,
    )


def openclip() -> Any:
    """As the weights of OpenCLIP come: another activation than CLIP's own, and the projection said once."""
    gelu = {"hidden_act": "gelu"}
    return transformers.CLIPConfig(vision_config=VISION | gelu, text_config=TEXT | gelu, projection_dim=6)


def siglip() -> Any:
    return transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | {"projection_size": 20})


# architecture of the checkpoint, its configuration, tokens before the patches, what is pooled
IMAGES = {
    "clip": ("CLIPModel", clip, 1, "image_embeds"),
    "clip of OpenCLIP": ("CLIPModel", openclip, 1, "image_embeds"),
    "clip with projection": (
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**VISION, projection_dim=6),
        1,
        "image_embeds",
    ),
    "clip without projection": (
        "CLIPVisionModel",
        lambda: transformers.CLIPVisionConfig(**VISION),
        1,
        "none",
    ),
    "vit": ("ViTModel", lambda: transformers.ViTConfig(**VISION), 1, "class token"),
    "vit for classification": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**VISION),
        1,
        "class token",
    ),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(**VISION), 1, "class token"),
    "dinov2 at another size": (
        "Dinov2Model",
        lambda: transformers.Dinov2Config(**VISION | {"image_size": 48}),
        1,
        "class token",
    ),
    "dinov2 with registers": (
        "Dinov2WithRegistersModel",
        lambda: transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=3),
        4,
        "class token",
    ),
    "dinov3": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(**VISION, num_register_tokens=2),
        3,
        "class token",
    ),
    "siglip": ("SiglipModel", siglip, 0, "pooler_output"),
    "siglip vision": (
        "SiglipVisionModel",
        lambda: transformers.SiglipVisionConfig(**VISION),
        0,
        "pooler_output",
    ),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", IMAGES)
def test_image_families_equal_the_model(
    case: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    architecture, config, prefix, pooled = IMAGES[case]
    model = save(architecture, config(), tmp_path)
    tower = {"ViTForImageClassification": "vit", "CLIPModel": "vision_model", "SiglipModel": "vision_model"}
    inner = getattr(model, tower[architecture]) if architecture in tower else model
    with torch.no_grad(), precision(dtype):
        answer = inner(pixel_values=normalised())
    capfd.readouterr()

    backbone = load_image(f"hf:{tmp_path}", "cpu", dtype)
    encoded = backbone.encode(torch.from_numpy(PIXELS))

    assert (backbone.dim, backbone.regions, backbone.grid) == (24, 16, (4, 4))
    assert encoded.vectors.shape == (3, 16, 24)
    near(encoded.vectors, answer.last_hidden_state[:, prefix:], dtype)
    if pooled == "none":
        assert (encoded.pooled, backbone.pooled_dim) == (None, 0)
    else:
        expected = {
            "class token": lambda: answer.last_hidden_state[:, 0],
            "pooler_output": lambda: answer.pooler_output,
            "image_embeds": lambda: (
                model.visual_projection(answer.pooler_output)
                if architecture == "CLIPModel"
                else answer.image_embeds
            ),
        }
        with torch.no_grad(), precision(dtype):
            wanted = expected[pooled]()
        assert encoded.pooled is not None
        assert encoded.pooled.shape == (3, backbone.pooled_dim)
        near(encoded.pooled, wanted, dtype)
    assert backbone.fingerprint()["pooled"] == pooled
    assert capfd.readouterr() == ("", "")


def test_an_image_goes_the_whole_way(tmp_path: Path) -> None:
    save("ViTModel", transformers.ViTConfig(**VISION), tmp_path)
    backbone = load_image(f"hf:{tmp_path}", "cpu")
    pixels = backbone.preprocess(Image.fromarray(PIXELS[0]).resize((70, 50)))
    assert pixels.shape == (32, 32, 3)
    assert torch.isfinite(backbone.encode(torch.from_numpy(pixels)[None]).vectors).all()


TEXTS = {
    "bert": ("BertModel", lambda: transformers.BertConfig(**TEXT), "mean"),
    "bert for masked words": ("BertForMaskedLM", lambda: transformers.BertConfig(**TEXT), "mean"),
    "roberta": (
        "RobertaModel",
        lambda: transformers.RobertaConfig(**TEXT | {"max_position_embeddings": 13}),
        "mean",
    ),
    "mpnet": (
        "MPNetModel",
        lambda: transformers.MPNetConfig(**TEXT | {"max_position_embeddings": 13}),
        "mean",
    ),
    "distilbert": (
        "DistilBertModel",
        lambda: transformers.DistilBertConfig(
            dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=len(WORDS), max_position_embeddings=12
        ),
        "mean",
    ),
    "electra": ("ElectraModel", lambda: transformers.ElectraConfig(**TEXT, embedding_size=16), "mean"),
    "modernbert": (
        "ModernBertModel",
        lambda: transformers.ModernBertConfig(
            **TEXT | {"num_hidden_layers": 4}, local_attention=4, cls_token_id=CLS, sep_token_id=SEP
        ),
        "mean",
    ),
    "clip": ("CLIPModel", clip, "text_embeds"),
    "clip of OpenCLIP": ("CLIPModel", openclip, "text_embeds"),
    "clip with projection": (
        "CLIPTextModelWithProjection",
        lambda: transformers.CLIPTextConfig(**TEXT, projection_dim=6),
        "text_embeds",
    ),
    "clip without projection": ("CLIPTextModel", lambda: transformers.CLIPTextConfig(**TEXT), "none"),
    "siglip": ("SiglipModel", siglip, "pooler_output"),
}
CAPTIONS = ["a dog runs on the beach .", "The cat sleeps", "the dog , the cat", ""]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", TEXTS)
def test_text_families_equal_the_model_on_each_caption_alone(
    case: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    architecture, config, pooled = TEXTS[case]
    model = save(architecture, config(), tmp_path)
    inner = {"CLIPModel": "text_model", "SiglipModel": "text_model", "BertForMaskedLM": "bert"}.get(
        architecture
    )
    inner = getattr(model, inner) if inner else model
    capfd.readouterr()

    backbone = load_text(f"hf:{tmp_path}", "cpu", dtype)
    tokenized = backbone.tokenize(CAPTIONS)
    assert tokenized.ids[1] == [CLS, 9, 6, 11, SEP]
    assert (tokenized.truncated, backbone.max_length) == (0, 12)
    lengths = torch.tensor([len(each) for each in tokenized.ids])
    ids = torch.zeros(len(CAPTIONS), int(lengths.max()), dtype=torch.int64)
    for row, each in enumerate(tokenized.ids):
        ids[row, : len(each)] = torch.tensor(each)
    encoded = backbone.encode(ids, lengths)
    assert encoded.vectors.shape == (*ids.shape, backbone.dim)
    assert capfd.readouterr() == ("", "")

    for row, length in enumerate(lengths.tolist()):
        alone = ids[row : row + 1, :length]
        if backbone.pad_to:
            alone = torch.nn.functional.pad(alone, (0, backbone.pad_to - length), value=backbone.pad_id)
        with torch.no_grad(), precision(dtype):
            answer = inner(input_ids=alone)
        near(encoded.vectors[row, :length], answer.last_hidden_state[0, :length], dtype)
        if pooled == "none":
            assert encoded.pooled is None
            continue
        expected = {
            "mean": lambda answer: answer.last_hidden_state[0].mean(0),
            "pooler_output": lambda answer: answer.pooler_output[0],
            "text_embeds": lambda answer: (
                model.text_projection(answer.pooler_output)[0]
                if architecture == "CLIPModel"
                else answer.text_embeds[0]
            ),
        }[pooled]
        with torch.no_grad(), precision(dtype):
            wanted = expected(answer)
        assert encoded.pooled is not None
        near(encoded.pooled[row], wanted, dtype)
    assert (backbone.pooled_dim or None) == (None if encoded.pooled is None else encoded.pooled.shape[1])
    assert backbone.fingerprint()["pooled"] == pooled


def test_siglip2_with_the_tokenizer_of_gemma_equals_the_model(tmp_path: Path) -> None:
    """Lower case, a sign for blanks, an end and no beginning, padded to full length on the right, no mask."""
    model = save("SiglipModel", siglip(), tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / file).unlink()
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"adogct"]
    tokenizer = transformers.GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )
    tokenizer.save_pretrained(tmp_path)
    backbone = load_text(f"hf:{tmp_path}", "cpu")
    captions = ["A Dog", "cat", "a dog to a cat too"]
    theirs = tokenizer(
        [caption.lower() for caption in captions], padding="max_length", max_length=12, truncation=True
    )["input_ids"]
    found = backbone.tokenize(captions)
    assert found.truncated == 1
    assert found.ids[0] == [5, 4, 6, 7, 8, 1]
    lengths = [len(each) for each in found.ids]
    assert [[*each, *[0] * (12 - len(each))] for each in found.ids] == theirs
    with torch.no_grad():
        answer = model.text_model(input_ids=torch.tensor(theirs))
    encoded = backbone.encode(torch.tensor(theirs), torch.tensor(lengths))
    near(encoded.vectors, answer.last_hidden_state, "float32")
    assert encoded.pooled is not None
    near(encoded.pooled, answer.pooler_output, "float32")


def test_long_captions_are_cut_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save("BertModel", transformers.BertConfig(**TEXT), tmp_path)
    backbone = load_text(f"hf:{tmp_path}", "cpu")
    capfd.readouterr()
    tokenized = backbone.tokenize(["a dog", "the " * 50, "cat " * 10, "cat " * 11])
    assert tokenized.truncated == 2
    assert tokenized.ids[1] == [CLS, *[9] * 10, SEP]
    assert [len(each) for each in tokenized.ids] == [4, 12, 12, 12]
    assert backbone.tokenize([]).ids == []
    assert capfd.readouterr() == ("", "")


def test_fingerprints_are_json_and_tell_models_apart(tmp_path: Path) -> None:
    save("BertModel", transformers.BertConfig(**TEXT), tmp_path / "one")
    save("BertModel", transformers.BertConfig(**TEXT | {"intermediate_size": 25}), tmp_path / "two")
    one, same, two = (
        load_text(f"hf:{tmp_path / name}", "cpu").fingerprint() for name in ("one", "one", "two")
    )
    assert one == same
    assert one["weights"] != two["weights"]
    assert one["tokenizer"] == two["tokenizer"]
    assert (one["backbone"], one["source"]) == ("hf:one", "one")
    assert str(tmp_path) not in json.dumps([one, two])


def test_shards_and_old_files_are_read(tmp_path: Path) -> None:
    model = save("BertModel", transformers.BertConfig(**TEXT), tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        for folder in ("shards", "old"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    ids, lengths = torch.tensor([[CLS, 5, SEP]]), torch.tensor([3])
    found = [
        load_text(f"hf:{tmp_path / name}", "cpu").encode(ids, lengths).vectors
        for name in ("whole", "shards", "old")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_missing_weights_are_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save("BertModel", transformers.BertConfig(**TEXT), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights of BertModel: 1, among them encoder\.layer\.1"):
        load_text(f"hf:{tmp_path}", "cpu")


def test_damaged_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save("BertModel", transformers.BertConfig(**TEXT), tmp_path)
    capfd.readouterr()
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DataError, match="cannot be loaded as BertModel"):
        load_text(f"hf:{tmp_path}", "cpu")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=f"the tokenizer of {tmp_path.name} cannot be loaded"):
        load_text(f"hf:{tmp_path}", "cpu")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="has no tokenizer: one of"):
        load_text(f"hf:{tmp_path}", "cpu")
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_size_than_config_json_says_are_named(tmp_path: Path) -> None:
    save("ViTModel", transformers.ViTConfig(**VISION), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(DataError, match=r"bias is \(32,\) in the weights and \(40,\) by config\.json: take"):
        load_image(f"hf:{tmp_path}", "cpu")


def test_a_vocabulary_without_its_own_unknown_word_is_a_sentence(tmp_path: Path) -> None:
    save("BertModel", transformers.BertConfig(**TEXT), tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: row for word, row in tokenizer["model"]["vocab"].items() if row > 4}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": []}))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=f"the tokenizer of (hf:)?{tmp_path.name}"):
        load_text(f"hf:{tmp_path}", "cpu").tokenize(["zebra"])


def test_pictures_and_model_must_agree_on_a_size(tmp_path: Path) -> None:
    save("ViTModel", transformers.ViTConfig(**VISION), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": 40}))
    with pytest.raises(DataError, match=r"come as 40 x 40 pixels .* its model takes 32 x 32"):
        load_image(f"hf:{tmp_path}", "cpu")
