"""torch.compile as an option: values within rounding of eager ones, said in the file, no other file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TEXT, VISION, save
from processes import call

from itmfeat.cache import open_cache
from itmfeat.errors import DataError
from itmfeat_extract.backbones import load_text
from itmfeat_extract.backbones.placement import no_compiler, place
from itmfeat_extract.extraction import extract

transformers = pytest.importorskip("transformers")


@pytest.fixture
def model(tmp_path: Path) -> str:
    save(
        "CLIPVisionModel",
        transformers.CLIPVisionConfig(**VISION | {"num_hidden_layers": 1}),
        tmp_path / "model",
    )
    return f"hf:{tmp_path / 'model'}"


def notes(pictures: Path, cache: Path, model: str, **given: Any) -> list[str]:
    said: list[str] = []
    given = {"limit": 8, "image_backbone": model, "text_backbone": "none"} | given
    extract("demo", pictures, cache, note=said.append, **given)
    return said


@pytest.mark.slow
@pytest.mark.skipif(bool(no_compiler(torch.device("cpu"))), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.compile
def test_compiled_images(model: str, pictures: Path, tmp_path: Path) -> None:
    notes(pictures, tmp_path / "eager", model, precision="float32")
    notes(pictures, tmp_path / "cache", model, precision="float32", compiled=True)
    eager, compiled = (open_cache(tmp_path / name).open("image") for name in ("eager", "cache"))
    np.testing.assert_allclose(compiled.array(), eager.array(), atol=1e-3, rtol=1e-3)  # they are float16
    path = tmp_path / "cache" / "image" / "hf-model.h5"
    before = path.stat().st_mtime_ns
    versions = json.loads(str(compiled.attributes["versions"]))
    assert versions["torch.compile"] == "inductor"
    notes(pictures, tmp_path / "cache", model, precision="float32")  # the same file for both
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.skipif(bool(no_compiler(torch.device("cpu"))), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.compile
def test_compiled_captions(tmp_path: Path) -> None:
    save("BertModel", transformers.BertConfig(**TEXT | {"num_hidden_layers": 1}), tmp_path)
    eager, compiled = (load_text(f"hf:{tmp_path}", "cpu", compiled=way) for way in (False, True))
    assert (eager.placement.compiled, compiled.placement.compiled) == (False, True)
    assert compiled.fingerprint() == eager.fingerprint()
    for captions in (["a dog runs", "the cat"], ["a dog", "the cat sleeps on the beach", "a ."]):
        ids = eager.tokenize(captions).ids
        lengths = torch.tensor([len(each) for each in ids])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in ids], batch_first=True)
        found, expected = compiled.encode(padded, lengths), eager.encode(padded, lengths)
        for row, length in enumerate(lengths.tolist()):
            here, there = found.vectors[row, :length], expected.vectors[row, :length]
            torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_one_note_says_so(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    said = notes(pictures, tmp_path / "cache", model, compiled=True, device="cpu")
    assert [line for line in said if "compile" in line] == [no_compiler(torch.device("cpu")) + COMPILED]
    assert "torch.compile" not in str(open_cache(tmp_path / "cache").open("image").attributes["versions"])


COMPILED = ", so nothing is compiled: leave --compile out, or install one"


def test_what_is_fused_by_hand_stays_so(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
    said = notes(pictures, tmp_path / "cache", "efficientnet-lite0", compiled=True, device="cpu")
    if place("cpu", None, compiled=True).compiled:
        assert any("efficientnet-lite0 is fused by hand" in line for line in said)
    assert call("extract", "--help").stdout.count("--compile") == 1


def test_a_half_file_is_gone_on_with_as_it_was_begun(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling rounds otherwise: one file is not made in both ways."""
    from itmfeat_extract import makers, pipeline

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "IMAGE_RANGE", 4)
    with pytest.raises(KeyboardInterrupt):
        extract(
            "demo",
            pictures,
            tmp_path / "cache",
            model,
            "none",
            limit=6,
            progress=lambda what, done, total: stop() if done else None,
        )
    eager = makers.versions
    monkeypatch.setattr(
        pipeline, "versions", lambda backbone: eager(backbone) | {"torch.compile": "inductor"}
    )
    with pytest.raises(DataError, match=r"versions|torch.compile"):
        notes(pictures, tmp_path / "cache", model, limit=6)
