"""The commands about noise as a user types them, and what training makes of their files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import call, fails

from itmfeat.api import configuration
from itmfeat.errors import UsageError
from itmfeat.features import open_features
from itmfeat.noise import PUBLISHED, published

TRUE = np.arange(200) // 5  # of the toy cache
SMALL = ["--epochs", "1", "--batch-size", "32", "--set", "head.dim=32"]


@pytest.mark.parametrize("protocol", ["ncr", "decl", "derangement", "replacement", "cluster"])
def test_make_then_inspect_then_train(toy_cache: Path, at: Path, protocol: str) -> None:
    options = ["--noise", 0.4, "--protocol", protocol, "--seed", 5, "--cache", toy_cache]
    made = json.loads(call("noise", "make", *options, "-o", "n.npy", "--json").stdout)
    stored = np.load("n.npy")
    assert (stored.shape, stored.dtype) == ((200,), np.int64)
    assert made["chosen"] == 80
    assert made["moved"] == 80 - made["fixed_points"] == (stored != TRUE).sum()
    assert made["kind"] == ("image-level" if protocol == "decl" else "caption-level")
    assert made["same_counts"] is (protocol != "replacement")
    seen = json.loads(call("noise", "inspect", "n.npy", "--cache", toy_cache, "--json").stdout)
    by_size = json.loads(call("noise", "inspect", "n.npy", "--images", 40, "--json").stdout)
    assert seen == by_size
    assert {key: made[key] for key in seen if key in made} == {key: seen[key] for key in seen if key in made}
    train = ["train", "--loss", "triplet", "--cache", toy_cache, *SMALL, "--json"]
    by_file = json.loads(call(*train, "--noise-file", "n.npy").stdout)
    manifest = json.loads(Path(by_file["run"], "manifest.json").read_text())
    assert manifest["noise"]["digest"] == made["digest"]
    if protocol == "cluster":
        return
    by_name = call(*train, "--noise", 0.4, "--noise-protocol", protocol, "--noise-seed", 5)
    assert json.loads(by_name.stdout)["rsum"] == by_file["rsum"]


def test_text_for_people(toy_cache: Path, at: Path) -> None:
    made = call("noise", "make", "--noise", 0.5, "--cache", toy_cache, "-o", "n.npy")
    assert "chosen, but unmoved" in made.stdout
    assert re.search(r"can share a stack +yes", made.stdout)
    shown = call("noise", "inspect", "n.npy", "--cache", toy_cache).stdout
    assert re.search(r"effective noise +4\d\.\d\d %", shown)
    assert "published" not in shown


def test_published_files_are_regenerated_once(at: Path) -> None:
    shown = call("noise", "published")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count(" yes\n") == 8
    folder = at / "data" / "noise_index"
    assert {path.name for path in folder.iterdir()} == {known.name for known in PUBLISHED}
    rows = json.loads(call("noise", "published", "-o", folder, "--json").stdout)
    assert all(row["ok"] for row in rows)
    for row in rows:
        content = Path(row["path"]).read_bytes()
        assert published.blob_digest(content) == row["blob"]
    seen = json.loads(call("noise", "inspect", folder / "coco_precomp_0.5.npy", "--json").stdout)
    assert (seen["published"], seen["seed"]) == ("coco_precomp_0.5.npy", 43)
    (folder / "f30k_precomp_0.2.npy").write_bytes(b"another")
    fails(3, "is another file", "noise", "published", "-o", folder)


def test_a_file_that_comes_out_otherwise_is_not_written(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "ncr", lambda true, ratio, seed: true)
    result = call("noise", "published", "-o", "here", "--json")
    assert result.exit_code == 1
    assert not any(row["ok"] for row in json.loads(result.stdout))
    assert "not written" in result.stderr
    assert not list(Path("here").iterdir())


def test_published_seeds_in_training(toy_cache: Path, at: Path) -> None:
    train = ["train", "--loss", "triplet", "--cache", toy_cache, *SMALL]
    fails(2, "coco at 0.2, 0.4, 0.5, 0.6", *train, "--noise", 0.2, "--noise-seed", "published")
    fails(2, "whole number or 'published'", *train, "--noise-seed", "publish")
    fails(2, r"noise\.seed", *train, "--noise-seed", 2**32)
    features = open_features(toy_cache)
    assert configuration(features, "triplet", noise=0.2, noise_seed=96).noise.seed == 96
    object.__setattr__(features.cache.index, "name", "coco")
    named = configuration(features, "triplet", noise=0.5, noise_seed="published")
    assert named.noise.seed == 43
    assert named == configuration(features, "triplet", noise=0.5, noise_seed=43)
    for clash in ({"noise_file": "n.npy"}, {"overrides": ["noise.ratio=0.2"]}):
        with pytest.raises(UsageError, match="goes with --noise alone"):
            configuration(features, "triplet", noise=0.5, noise_seed="published", **clash)


def test_wrong_input(toy_cache: Path, at: Path) -> None:
    make = ["noise", "make", "-o", "n.npy", "--cache", toy_cache]
    fails(2, r"\[0, 1\)", *make, "--noise", 1)
    fails(2, "did you mean 'cluster'", *make, "--noise", 0.4, "--protocol", "clusters")
    fails(2, "noise seed must lie", *make, "--noise", 0.4, "--seed", 2**32)
    fails(2, r"1\.\.40", *make, "--noise", 0.4, "--protocol", "cluster", "--clusters", 41)
    fails(2, "image backbone", *make, "--noise", 0.4, "--protocol", "cluster", "--image-backbone", "gird")
    assert not Path("n.npy").exists()
    fails(1, "n.npy", "noise", "make", "--noise", 0.4, "-o", "no/n.npy", "--cache", toy_cache)
    fails(3, "no cache in ./caches", "noise", "make", "--noise", 0.4, "-o", "n.npy")
    fails(2, "noise make --protocol cluster", "train", "--loss", "snll", "--cache", toy_cache,
          "--noise-protocol", "cluster")  # fmt: skip
    fails(3, r"no readable \.npy", "noise", "inspect", "missing.npy")
    np.save("n.npy", np.arange(30))
    fails(3, "pass --cache or --images", "noise", "inspect", "n.npy")
    fails(2, "exclude each other", "noise", "inspect", "n.npy", "--images", 6, "--cache", toy_cache)
    fails(3, r"\(200,\) captions or \(40,\) images", "noise", "inspect", "n.npy", "--cache", toy_cache)
    fails(3, "outside 0..5", "noise", "inspect", "n.npy", "--images", 6)


@pytest.mark.parametrize("command", [[], ["make"], ["inspect"], ["published"]])
def test_help_is_light(command: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['itmfeat', 'noise', *{command!r}, '--help']\n"
        "from itmfeat.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'faiss', 'h5py', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
