"""What a GPU changes: nothing but rounding. Losses, heads, stacks, evaluation, residency."""

import json
from pathlib import Path

import pytest
import torch
from processes import call
from test_retrieval import brute_force, integers, ragged
from test_stack_equals_alone import mixed, steps
from test_training import config, history

from itmfeat.api import evaluate
from itmfeat.config import HEADS
from itmfeat.retrieval import ranks, search
from itmfeat.training import train_stack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_every_loss_and_method_takes_the_steps_of_the_cpu(toy_cache: Path, tmp_path: Path) -> None:
    # Dropout draws its masks where the heads are, and FNE its negatives.
    still = {"dropout": 0.0, "hidden_dropout": 0.0}
    configs = [
        one.model_copy(update={"head": one.head.model_copy(update=still)})
        for one in mixed(toy_cache, "default")
        if one.loss["name"] != "fne"
    ]
    here, there = (steps(configs, toy_cache, tmp_path, 24, device) for device in (GPU, CPU))
    for one, mine, theirs in zip(configs, here.cpu(), there, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=lambda m, o=one: f"{o.name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("head", list(HEADS))
def test_a_run_in_a_stack_takes_the_steps_that_it_takes_alone(
    toy_cache: Path, tmp_path: Path, head: str
) -> None:
    configs = mixed(toy_cache, head)
    for one, together in zip(configs, steps(configs, toy_cache, tmp_path, 60, GPU), strict=True):
        alone = steps([one], toy_cache, tmp_path, 60, GPU)[0]
        torch.testing.assert_close(
            together, alone, rtol=1e-3, atol=1e-6, msg=lambda m, o=one: f"{o.name}: {m}"
        )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_run_ends_like_an_undisturbed_one(toy_cache: Path, tmp_path: Path, precision: str) -> None:
    one = config(toy_cache, "fne", f"schedule.precision={precision}", "loss.start=5", noise=0.4, epochs=4)
    whole = train_stack([one], toy_cache, tmp_path / "whole", "cuda")[0]

    def kill(done: int, total: int, line: str) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stack([one], toy_cache, tmp_path / "killed", "cuda", progress=kill)
    again = train_stack([one], toy_cache, tmp_path / "killed", "cuda")[0]
    assert history(again) == history(whole)
    assert (again / "head.safetensors").read_bytes() == (whole / "head.safetensors").read_bytes()


def test_where_features_stay_changes_nothing(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce", head="max-linear")
    found = [
        history(train_stack([one], toy_cache, tmp_path / place, "cuda", resident=place)[0])
        for place in ("gpu", "ram", "disk")
    ]
    assert found[0] == found[1] == found[2]


def test_a_run_is_evaluated_alike_on_both(toy_cache: Path, tmp_path: Path) -> None:
    run = train_stack([config(toy_cache, "snll")], toy_cache, tmp_path, "cuda")[0]
    here, there = (evaluate(run, split="val", device=device) for device in ("cuda", "cpu"))
    assert here["rsum"] == pytest.approx(there["rsum"], abs=10)  # 10 images: one rank is worth 10
    assert evaluate(run, device="cuda")["rsum"] == json.loads((run / "results.json").read_text())["rsum"]


@pytest.mark.parametrize("largest", [0, 1, 1000])
@pytest.mark.parametrize("images", [37, 300])
def test_ranks_and_hits_break_ties_as_on_the_cpu(images: int, largest: int) -> None:
    owner = ragged(images)
    image, text = integers(images, 5, largest), integers(len(owner), 5, largest)
    want, got = brute_force(image @ text.T, owner), ranks(image.to(GPU), text.to(GPU), owner.to(GPU))
    assert torch.equal(got.i2t.cpu(), want.i2t)
    assert torch.equal(got.t2i.cpu(), want.t2i)
    scores, ids = search(image.to(GPU), text.to(GPU), len(text))
    expected = (image @ text.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(scores.cpu(), expected.values)
    assert torch.equal(ids.cpu(), expected.indices)


def test_a_head_that_gives_the_same_for_all_scores_chance() -> None:
    image, text = torch.ones(100, 64, device=GPU) / 8, torch.ones(500, 64, device=GPU) / 8
    got = ranks(image, text, torch.arange(500, device=GPU) // 5)
    assert torch.equal(got.i2t.cpu(), torch.arange(100) * 5)
    assert torch.equal(got.t2i.cpu(), torch.arange(500) // 5)


def test_a_table_and_its_limits_are_measured(toy_cache: Path, at: Path) -> None:
    done = call("sweep", "--cache", toy_cache, "--loss", "snll,fne", "--noise", "0,0.4", "--epochs", 2,
                "--batch-size", 32, "--head", "mean-linear", "--dry-run")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "0.00" not in done.stdout.splitlines()[-1]
    done = call("bench", "--cache", toy_cache, "--batch-size", 32, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["device"] == "cuda"
