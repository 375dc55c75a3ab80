"""`evaluate` of runs: the first captions, ensembles, and splits that are not those of papers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import call, fails
from safetensors.torch import load_file, save_file

from itmfeat import api, retrieval
from itmfeat.api import embeddings, evaluate, train
from itmfeat.cache.index import read_index
from itmfeat.errors import DataError, UsageError
from itmfeat.features import reopen
from itmfeat.pairs import Pairs
from itmfeat.retrieval import evaluate_split
from itmfeat.runs import Run

SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def runs(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of different losses, seeds and dimensions on the toy cache."""
    folder = tmp_path_factory.mktemp("runs")
    wide = train("infonce", cache=toy_cache, runs=folder, seed=1, overrides=["head.dim=24"], **SMALL)
    double = train("triplet", robust="ncr", cache=toy_cache, runs=folder, **SMALL)  # two nets
    return [train("infonce", cache=toy_cache, runs=folder, **SMALL), wide, double]


def sides(path: Path, captions: int | None = None) -> tuple[torch.Tensor, ...]:
    run = Run(path)
    features = reopen(Path(run.read("manifest.json")["cache"]), run.config().data)
    return embeddings(run, run.config(), features, "test", torch.device("cpu"), captions)


# --- ensembles ---


def test_an_ensemble_ranks_by_the_mean_of_the_similarities(runs: list[Path]) -> None:
    found = evaluate(runs, ensemble=True)
    assert found["ensemble"] == [path.name for path in runs]
    parts = [sides(path) for path in runs]
    mean = torch.stack([image @ text.T for image, text, _ in parts]).mean(0)
    image, text = (api._averaged([part[side] for part in parts]) for side in (0, 1))
    torch.testing.assert_close(image @ text.T, mean)
    # The mean as similarities to ten unit vectors: the same ranks.
    want = retrieval.evaluate(torch.eye(10), mean.T, parts[0][2])
    assert {key: found[key] for key in want} == want


def test_two_equal_runs_are_an_ensemble_that_scores_as_one(runs: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in runs[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    one, both = evaluate(runs[0]), evaluate([runs[0], copy], ensemble=True)
    assert both.pop("ensemble") == [runs[0].name, "copy"]
    assert both == one


def test_a_collapsed_ensemble_scores_chance(runs: list[Path], tmp_path: Path) -> None:
    collapsed = []
    for path in runs:
        copy = tmp_path / path.name
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        state = {
            name: torch.zeros_like(value) for name, value in load_file(path / "head.safetensors").items()
        }
        for side in ("image", "text"):
            state[f"{side}.linear.bias"] += 1
            state[f"{side}.scale"] += 1
        save_file(state, copy / "head.safetensors")
        collapsed.append(copy)
    found = evaluate(collapsed, ensemble=True)
    assert (found["t2i"]["r1"], found["t2i"]["r5"], found["i2t"]["r1"]) == (10, 50, 10)


def test_what_cannot_be_averaged_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with --ensemble"):
        evaluate(runs)
    for few in (runs[:1], [runs[0], runs[0].parent / "." / runs[0].name]):
        with pytest.raises(UsageError, match="two different runs"):
            evaluate(few, ensemble=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="is not finished"):
        evaluate([runs[0], tmp_path], ensemble=True)


def test_runs_on_other_data_are_refused(
    runs: list[Path], toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train("infonce", cache=toy_cache, runs=tmp_path, overrides=["data.captions_per_image=2"], **SMALL)
    with pytest.raises(
        DataError, match="differ in the images or captions of the test split: give --captions"
    ):
        evaluate([runs[0], first], ensemble=True)
    assert evaluate([runs[0], first], ensemble=True, captions=3)["captions"] == 30
    config = json.loads((first / "config.json").read_text())
    config["data"]["dataset_digest"] = "0" * 64
    (first / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(api, "reopen", lambda path, data: reopen(path, Run(runs[0]).config().data))
    with pytest.raises(DataError, match="are runs on different datasets"):
        evaluate([runs[0], first], ensemble=True)


# --- the first captions ---


def test_the_first_captions_are_ranked_and_the_others_counted(runs: list[Path]) -> None:
    assert evaluate(runs[0])["dropped"] == 0
    found = evaluate(runs[0], captions=2)
    assert (found["images"], found["captions"], found["dropped"]) == (10, 20, 30)
    image, text, owner = sides(runs[0])
    kept = (torch.arange(50) % 5) < 2
    want = retrieval.evaluate(image, text[kept], owner[kept])
    assert {key: found[key] for key in want} == want
    assert evaluate(runs[0], captions=0)["captions"] == 50
    with pytest.raises(UsageError, match="--captions must be at least 1"):
        evaluate(runs[0], captions=-1)


# --- splits ---


def split_of(cache: Path, images: int, per_image: int, name: str, missing: int) -> dict[str, Any]:
    """The answer for a collapsed head on a split of so many images; of the index only the name is read."""
    captions = images * per_image
    pairs = Pairs(np.arange(images), np.arange(captions), np.arange(captions) // per_image, 0, missing)
    index = replace(read_index(cache / "dataset.h5"), name=name)
    return dict(evaluate_split(torch.ones(images, 2), torch.ones(captions, 2), pairs, index))


@pytest.mark.parametrize(
    ("images", "per_image", "name", "missing", "label", "standard"),
    [
        (1000, 5, "flickr30k", 0, "1k", None),
        (999, 5, "flickr30k", 1, "subset", {"images": 1000, "captions": 5000}),
        (1000, 1, "flickr8k", 0, "subset", {"images": 1000, "captions": 5000}),
        (1000, 6, "flickr8k", 0, "full", {"images": 1000, "captions": 5000}),
        (1000, 5, "coco", 0, "subset", {"images": 5000, "captions": 25000}),  # cut to the size of another
        (1000, 5, "pets", 1, "subset", {"images": 1001}),
        (1000, 2, "pets", 0, "1k", None),
        (70, 5, "pets", 0, "full", None),
    ],
)
def test_what_a_split_is_called(
    images: int, per_image: int, name: str, missing: int, label: str, standard: Any, toy_cache: Path
) -> None:
    found = split_of(toy_cache, images, per_image, name, missing)
    assert (found["protocol"], found.get("standard")) == (label, standard)
    assert (found["images"], found["captions"]) == (images, images * per_image)


def test_a_part_of_a_split_takes_no_protocol_of_a_fixed_size() -> None:
    standard: retrieval.Standard = {"images": 5000, "captions": 25000}
    split = torch.ones(1000, 2), torch.ones(5000, 2), torch.arange(5000) // 5
    with pytest.raises(
        DataError, match="1k is for the whole test split of 5000 images and 25000 captions, and"
    ):
        retrieval.evaluate(*split, "1k", standard=standard)
    found = retrieval.evaluate(*split, "full", standard=standard)
    assert (found["protocol"], found["standard"]) == ("subset", standard)


# --- the command ---


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    said = call("eval", *runs[:2], "--ensemble").stdout
    assert f"ensemble of 2: {runs[0].name}, {runs[1].name}" in said
    assert "20 captions (30 more captions dropped)" in call("eval", runs[0], "--captions", 2).stdout
    assert json.loads(call("eval", *runs[:2], "--ensemble", "--json").stdout) == evaluate(
        runs[:2], ensemble=True
    )
    fails(2, "several runs are evaluated as one, with --ensemble", "eval", *runs)
    fails(2, "takes two different runs", "eval", runs[0], "--ensemble")
    fails(2, "--captions must be at least 1", "eval", runs[0], "--captions", -3)
    fails(2, "unknown protocol 'ecv': did you mean 'eccv'", "eval", runs[0], "--protocol", "ecv")
    fails(
        3,
        "known by COCO's ids, and the test split of toy has 0 of them",
        "eval",
        runs[0],
        "--protocol",
        "eccv",
    )


def test_how_results_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    from itmfeat.cli.runs import _print_results

    found: Any = retrieval.evaluate(
        torch.eye(9), torch.eye(9), torch.arange(9), standard={"images": 10, "captions": 50}
    )
    both = {"i2t": {"queries": 3, "map_at_r": 1.0, "r_precision": 2.0, "r1": 3.0}}
    _print_results(found | {"eccv": both | {"t2i": both["i2t"]}}, as_json=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "test split, protocol subset: 9 images, 9 captions (the whole split: 10 images, 50 captions)"
    )
    assert said[-3:] == [
        "ECCV Caption   mAP@R    R-P    R@1",
        "image to text    1.0    2.0    3.0 of 3 queries",
        "text to image    1.0    2.0    3.0 of 3 queries",
    ]
