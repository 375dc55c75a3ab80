"""The command line as a user types it: what it prints, and one sentence for wrong input."""

import json
import re
from pathlib import Path

import pytest
from processes import call, fails

from itmfeat.features import open_features
from itmfeat.settings import configuration

SMALL = ["--epochs", "2", "--batch-size", "32", "--set", "head.dim=32"]


def test_train_eval_report(toy_cache: Path, at: Path) -> None:
    (at / "caches").mkdir()
    (at / "caches" / "toy").symlink_to(toy_cache)
    trained = call("train", "--loss", "triplet", "--noise", "0.2", *SMALL)
    assert trained.exit_code == 0, trained.output
    assert re.search(r"rSum \d+\.\d", trained.stdout)
    folder = trained.stdout.splitlines()[-1]
    assert "train 12/12" in trained.stderr
    evaluated = call("eval", folder, "--json")
    assert json.loads(evaluated.stdout) == json.loads(Path(folder, "results.json").read_text())
    results = json.loads(evaluated.stdout)
    assert list(results) == ["protocol", "split", "images", "captions", "i2t", "t2i", "rsum", "dropped"]
    table = call("report", "runs")
    assert "triplet" in table.stdout
    assert call("report", "runs", "--format", "csv", "-o", "table.csv").exit_code == 0
    assert "triplet" in (at / "table.csv").read_text()
    assert json.loads(call("report", "runs", "--format", "json").stdout)
    fails(3, "exists and is finished", "train", "--loss", "triplet", "--noise", "0.2", *SMALL)
    again = call("train", "--loss", "triplet", "--noise", "0.2", *SMALL, "--resume", "--json")
    assert json.loads(again.stdout)["rsum"] == results["rsum"]


def test_cache_commands(toy_cache: Path, at: Path) -> None:
    info = json.loads(call("cache", "info", toy_cache, "--json").stdout)
    assert [file["name"] for file in info["features"]] == ["grid", "words"]
    assert "train 40 images, 200 captions" in call("cache", "info", toy_cache).stdout
    assert "as it was written" in call("cache", "verify", toy_cache).stdout
    copy = at / "copy"
    (copy / "image").mkdir(parents=True)
    (copy / "dataset.h5").write_bytes((toy_cache / "dataset.h5").read_bytes())
    raw = bytearray((toy_cache / "image" / "grid.h5").read_bytes())
    raw[-3] ^= 1
    (copy / "image" / "grid.h5").write_bytes(raw)
    fails(3, "damaged", "cache", "verify", copy)


def test_lists(at: Path) -> None:
    assert {row["name"] for row in json.loads(call("losses", "--json").stdout)} >= {"triplet", "snll"}
    assert "infonce" in call("losses").stdout
    assert "efficientnet-lite0" in call("backbones").stdout
    assert "clip-b32" in {row["name"] for row in json.loads(call("backbones", "--json").stdout)}
    found = json.loads(call("doctor", "--json").stdout)
    assert {"torch", "faiss", "devices", "disk here"} <= set(found)
    assert "torch build" in call("doctor").stdout
    assert call("--version").stdout.startswith("itmfeat ")


def test_wrong_input_without_a_cache(at: Path) -> None:
    fails(3, "no folder .*give --root", "extract", "flickr8k", "--root", "nowhere")
    fails(2, "unknown dataset 'cocoa': did you mean 'coco'", "extract", "cocoa")
    fails(3, "no cache in ./caches; run `itmfeat extract", "train", "--loss", "triplet")
    fails(3, "is no cache", "train", "--loss", "triplet", "--cache", "here")
    fails(3, "no run folder", "eval", "here")
    fails(3, "no run in", "report", "here")
    (at / "root").mkdir()
    (at / "root" / "captions.txt").write_text("what is this\n")
    fails(3, "captions.txt", "extract", "flickr8k", "--root", "root")


def test_wrong_input_with_a_cache(toy_cache: Path, at: Path) -> None:
    cache = ["--cache", toy_cache]
    fails(2, "did you mean 'triplet'", "train", "--loss", "tripplet", *cache)
    fails(2, r"\[0, 1\)", "train", "--loss", "triplet", "--noise", 1.5, *cache)
    fails(2, "unknown head", "train", "--loss", "triplet", "--head", "big", *cache)
    fails(2, "did you mean 'loss.margin'", "train", "--loss", "triplet", "--set", "loss.magrin=1", *cache)
    fails(2, "image backbone", "train", "--loss", "triplet", "--image-backbone", "gird", *cache)
    fails(3, r"no readable \.npy", "train", "--loss", "triplet", "--noise-file", "no.npy", *cache)
    fails(2, "not available", "train", "--loss", "triplet", "--device", "tpu", *cache)
    assert not (at / "runs").exists()


def test_typer_says_what_is_missing() -> None:
    result = call("train")
    assert result.exit_code == 2
    assert "--loss" in result.stderr


def test_a_loss_may_name_its_robust_method(toy_cache: Path, at: Path) -> None:
    features = open_features(toy_cache)
    assert configuration(features, "snll+ncr") == configuration(features, "snll", robust="ncr")
    assert configuration(features, "snll+none").label == "snll"
    both = ["train", "--cache", toy_cache, "--loss"]
    fails(2, "name two methods: leave one out", *both, "snll+ncr", "--robust", "split")
    fails(2, "unknown robust method 'nrc': did you mean 'ncr'", *both, "snll+nrc")


def test_only_what_goes_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for name, arguments, said in (
        ("itmfeat.api.train", ["train", "--loss", "snll"], "interrupted; the same command goes on from here"),
        ("itmfeat.api.evaluate", ["eval", "here"], "interrupted"),
    ):
        monkeypatch.setattr(name, interrupted)
        result = call(*arguments)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, said)
