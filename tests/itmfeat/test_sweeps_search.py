"""Searches: what Optuna may vary, stacks of trials, and what a kill leaves of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from processes import call, fails

from itmfeat.runs import Run
from itmfeat.sweeps.sweep import search

SPEC = """
loss: triplet
head: mean-linear
head.dim: 8
epochs: 1
batch_size: 50
seed: [0, 1]
loss.margin: {low: 0.05, high: 0.5, log: true}
lr: {choices: [1e-2, 1e-3]}
"""


@pytest.fixture
def spec(at: Path, toy_cache: Path) -> Path:
    file = at / "search.yaml"
    file.write_text(f"{SPEC}cache: {toy_cache}\n")
    return file


def test_the_best_trial_is_that_of_the_best_validation(spec: Path) -> None:
    found = call("sweep", spec, "--search", "optuna", "--trials", 10, "--json", "--runs", "runs")
    assert found.exit_code == 0, found.stderr
    events = [json.loads(line) for line in found.stdout.splitlines()]
    trials = [event for event in events if event["event"] == "trial"]
    best = events[-1]
    assert [event["trial"] for event in trials] == list(range(10))
    assert best["val_rsum"] == max(event["val_rsum"] for event in trials)
    assert [event["settings"] for event in events if event["event"] == "planned"] == [16, 4]
    manifests = [Run(Path(run)).read("manifest.json") for run in best["runs"]]
    assert sum(m["selection"]["rsum"] for m in manifests) / 2 == best["val_rsum"]
    config = Run(Path(best["runs"][0])).config()
    assert config.loss["margin"] == best["values"]["loss.margin"]
    assert {Run(path).config().schedule.lr for path in Path("runs").glob("toy*")} <= {1e-2, 1e-3}

    again = call("sweep", spec, "--search", "optuna", "--trials", 10, "--runs", "runs")
    assert again.stdout.startswith(f"trial {best['number']} is the best of 10: val rSum")


def test_a_killed_search_ends_like_an_undisturbed_one(spec: Path) -> None:
    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "finished":
            raise KeyboardInterrupt

    whole = search(spec, trials=9, runs="whole")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(spec, trials=9, runs="killed", tell=kill)
    killed = search(spec, trials=9, runs="killed")
    assert killed.values == whole.values
    assert killed.val_rsum == whole.val_rsum
    assert {path.name for path in Path("killed").iterdir()} == {path.name for path in Path("whole").iterdir()}


def test_wrong_searches(toy_cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = at / "s.yaml"

    def wrong(code: int, message: str, text: str, *more: object) -> None:
        file.write_text(text)
        fails(code, message, "sweep", file, "--search", "optuna", "--cache", toy_cache, *more)
        assert [path.name for path in at.iterdir()] == ["s.yaml"]

    margin = "loss.margin: {low: 0.1, high: 0.5}"
    wrong(2, "there is no range to search", "loss: triplet")
    wrong(2, "losses differ", f"loss: [triplet, tal]\n{margin}")
    wrong(2, "a search takes one grid", f"grids: [{{loss: triplet}}, {{loss: tal}}]\n{margin}")
    wrong(2, "line 2: a range of loss.margin has low and high", "loss: triplet\nloss.margin: {low: 0.1}")
    wrong(2, "line 2: .*low.*high", "loss: triplet\nloss.margin: {low: 0.5, high: 0.1}")
    wrong(2, "unknown part of the range of lr 'hi'", "loss: triplet\nlr: {low: 0.1, hi: 0.5}")
    wrong(2, "line 2: high of lr must be a number, not inf", "loss: triplet\nlr: {low: 1, high: .inf}")
    wrong(2, "line 2: a list is no single value", "loss: triplet\nlr: {choices: [1, [2]]}")
    wrong(2, "line 2: .* must lie in .* not 1.5", "loss: triplet\nnoise: {low: 0, high: 1.5}")
    wrong(2, "line 2: unknown head 'deflt'", "loss: triplet\nhead: {choices: [default, deflt]}")
    wrong(2, "unknown loss 'tripet'", "loss: {choices: [tripet]}")
    wrong(2, "unknown key 'loss.margn'", "loss: triplet\nloss.margn: {low: 0.1, high: 0.5}")
    wrong(2, "a search plans as it goes", f"loss: triplet\n{margin}", "--dry-run")
    wrong(2, "--trials must be at least 1", f"loss: triplet\n{margin}", "--trials", "0")
    file.write_text(f"loss: triplet\n{margin}")
    fails(2, "unknown --search 'optun': did you mean 'optuna'", "sweep", file, "--search", "optun")
    monkeypatch.setitem(sys.modules, "optuna", None)
    wrong(4, r"pip install 'itmfeat\[optuna\]'", f"loss: triplet\n{margin}")
