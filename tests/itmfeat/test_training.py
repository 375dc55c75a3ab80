"""The trainer: a run in a stack equals the run alone, kills change nothing, selection sees no test."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from itmfeat import training
from itmfeat.api import configuration, embeddings, evaluate, train
from itmfeat.config import RunConfig
from itmfeat.errors import DataError, ItmfeatError, UsageError
from itmfeat.features import open_features, reopen
from itmfeat.losses import LOSSES
from itmfeat.noise import corrupt, ncr
from itmfeat.runs import Run
from itmfeat.sweeps import sweep
from itmfeat.training import learning_rate, train_stack

# One of each family; the losses' own tests cover every name.
FAMILIES = ["triplet", "infonce", "snll", "goal-nca-con", "rcl-log", "tal", "sce", "circle"]
TINY = ["head.dim=32"]  # instead of 1024: the toy is as well learned
SMALL = {"epochs": 3, "batch_size": 32, "lr": 1e-2}


def config(cache: Path, loss: str, *overrides: str, **given: Any) -> RunConfig:
    """A run whose head is small, if the overrides do not say otherwise."""
    overrides = (*TINY, *overrides)
    return configuration(open_features(cache), loss, overrides=overrides, **(SMALL | given))


def history(path: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock says."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in Run(path).metrics()]


@pytest.mark.parametrize("pool", ["mean", "max", "topk", "gpo"])
def test_each_run_of_a_mixed_stack_equals_the_run_alone(toy_cache: Path, tmp_path: Path, pool: str) -> None:
    losses = FAMILIES[:4] if pool == "mean" else FAMILIES[:2]  # what is pooled is nothing to a loss
    configs = [
        config(toy_cache, loss, f"head.pooling={pool}", "head.dim=16", noise=noise, seed=seed)
        for seed, loss in enumerate(losses)
        for noise in (0, 0.5)
    ]
    together = train_stack(configs, toy_cache, tmp_path / "stack")
    for place, one in enumerate(configs):
        alone = train_stack([one], toy_cache, tmp_path / "alone")[0]
        assert alone.name == together[place].name
        for mine, theirs in zip(history(together[place]), history(alone), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        mine, theirs = (json.loads((path / "results.json").read_text()) for path in (together[place], alone))
        assert mine["rsum"] == pytest.approx(theirs["rsum"], abs=15)  # 10 images: one rank is worth 10


@pytest.mark.parametrize("stop", [1, 40, 41, 75])
def test_a_killed_run_ends_like_an_undisturbed_one(toy_cache: Path, tmp_path: Path, stop: int) -> None:
    one = config(toy_cache, "snll", noise=0.4, epochs=4)
    whole = train_stack([one], toy_cache, tmp_path / "whole")[0]
    per_epoch = 200 // 32

    def kill(done: int, total: int, line: str) -> None:
        if done == stop * per_epoch // 20 + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stack([one], toy_cache, tmp_path / "killed", progress=kill)
    again = train_stack([one], toy_cache, tmp_path / "killed")[0]
    assert history(again) == history(whole)
    assert (again / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (again / "head.safetensors").read_bytes() == (whole / "head.safetensors").read_bytes()
    assert not list(again.glob("checkpoint*"))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch."""
    monkeypatch.setattr(training, "PAUSE", 0)


@pytest.mark.usefixtures("often")
def test_a_kill_between_the_checkpoints_of_a_stack(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [config(toy_cache, "infonce", seed=seed) for seed in (0, 1)]
    whole = train_stack(configs, toy_cache, tmp_path / "whole")
    write = Run.write_tensors

    def kill(run: Run, name: str, tensors: dict[str, torch.Tensor]) -> None:
        if run.path.name == configs[1].name and name == run.checkpoint(2):
            raise KeyboardInterrupt
        write(run, name, tensors)

    monkeypatch.setattr(Run, "write_tensors", kill)
    with pytest.raises(KeyboardInterrupt):
        train_stack(configs, toy_cache, tmp_path / "killed")
    monkeypatch.setattr(Run, "write_tensors", write)
    found = [set(Run(tmp_path / "killed" / one.name).checkpoints()) for one in configs]
    assert found == [{1, 2}, {1}]
    again = train_stack(configs, toy_cache, tmp_path / "killed")
    assert [history(path) for path in again] == [history(path) for path in whole]


@pytest.mark.usefixtures("often")
def test_runs_that_are_not_equally_far_lose_nothing(toy_cache: Path, tmp_path: Path) -> None:
    ahead, fresh = (config(toy_cache, "infonce", seed=seed) for seed in (0, 1))

    def kill(done: int, total: int, line: str) -> None:
        if done == 13:  # in the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stack([ahead], toy_cache, tmp_path, progress=kill)
    steps: list[int] = []
    train_stack([fresh, ahead], toy_cache, tmp_path, progress=lambda done, *_: steps.append(done))
    assert steps == [*range(1, 19), *range(13, 19)]


def test_a_run_trains_in_one_process_only(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce")
    run = Run(tmp_path / one.name)
    run.start(one)
    held = run.lock()
    with pytest.raises(DataError, match="right now"):
        train_stack([one], toy_cache, tmp_path)
    os.close(held)
    train_stack([one], toy_cache, tmp_path)


def test_what_another_process_finished_stays_as_it_is(toy_cache: Path, tmp_path: Path) -> None:
    one, other = config(toy_cache, "infonce"), config(toy_cache, "infonce", seed=1)
    done = train_stack([one], toy_cache, tmp_path)[0]
    before = {file: file.stat().st_mtime_ns for file in done.iterdir()}
    paths = train_stack([one, other], toy_cache, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in done.iterdir()} == before
    assert Run(paths[1]).read("manifest.json")["stack"] == 1


def test_all_who_start_a_run_lock_the_same_file(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce")
    path = tmp_path / one.name
    path.mkdir()
    for left in ("config.json.part", "config.json.0f.part"):  # by a kill
        (path / left).write_text("{")
    together = threading.Barrier(8)
    files: list[int] = []

    def start() -> None:
        together.wait()
        Run(path).start(one)
        files.append((path / "config.json").stat().st_ino)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 8
    assert len(set(files)) == 1


def test_a_run_that_cannot_be_completed_does_not_keep_others_back(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = config(toy_cache, "infonce"), config(toy_cache, "infonce", seed=1)
    tidy = Run.tidy

    def broken(run: Run) -> None:
        if run.path.name == first.name:
            raise DataError("broken")
        tidy(run)

    monkeypatch.setattr(Run, "tidy", broken)
    with pytest.raises(DataError, match="broken"):
        train_stack([first, second], toy_cache, tmp_path)
    assert Run(tmp_path / second.name).finished


def test_a_full_disk_is_one_sentence(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    one = config(toy_cache, "infonce")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ItmfeatError, match="is full; make room"):
        train_stack([one], toy_cache, tmp_path)
    monkeypatch.undo()
    assert Run(train_stack([one], toy_cache, tmp_path)[0]).finished


def test_a_diverging_run_stops_alone(toy_cache: Path, tmp_path: Path) -> None:
    good = config(toy_cache, "infonce", "head.dim=16")
    bad = config(toy_cache, "snll", "head.dim=16", "loss.scale=1e38", "loss.learn=false")
    fine = config(toy_cache, "snll", "head.dim=16", "loss.learn=false")
    beside = train_stack([good, fine], toy_cache, tmp_path / "fine")[0]
    with pytest.raises(ItmfeatError, match="diverged in epoch 1"):
        train_stack([good, bad], toy_cache, tmp_path / "both")
    assert history(tmp_path / "both" / good.name) == history(beside)  # to the bit
    run = tmp_path / "both" / bad.name
    assert not (run / "results.json").exists()
    assert json.loads((run / "manifest.json").read_text())["diverged"] == 1
    before = len(history(run))
    with pytest.raises(ItmfeatError, match="diverged in epoch 1"):
        train_stack([bad], toy_cache, tmp_path / "both")
    assert len(history(run)) == before


def test_learning_beats_chance_and_eval_repeats_the_results(toy_cache: Path, tmp_path: Path) -> None:
    path = train("infonce", cache=toy_cache, runs=tmp_path, epochs=10, batch_size=32, lr=1e-2)
    stored = json.loads((path / "results.json").read_text())
    assert stored["rsum"] > 350  # chance is about 220 with ten images
    assert evaluate(path) == stored
    assert evaluate(path, "val")["split"] == "val"
    manifest = json.loads((path / "manifest.json").read_text())
    best = max(history(path), key=lambda entry: entry["val"]["rsum"])
    assert manifest["selection"] == {"split": "val", "epoch": best["epoch"], "rsum": best["val"]["rsum"]}


def test_a_finished_run_is_not_trained_again(toy_cache: Path, tmp_path: Path) -> None:
    path = train("infonce", cache=toy_cache, runs=tmp_path, overrides=TINY, **SMALL)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(DataError, match="exists and is finished"):
        train("infonce", cache=toy_cache, runs=tmp_path, overrides=TINY, **SMALL)
    assert train("infonce", cache=toy_cache, runs=tmp_path, resume=True, overrides=TINY, **SMALL) == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    given: dict[str, Any] = SMALL | {"head.dim": 32}
    paths = sweep(loss="infonce", noise=[0.0, 0.5], cache=toy_cache, runs=tmp_path, **given)
    assert paths[0] == path
    assert Run(paths[1]).finished


def test_a_folder_in_the_way_is_left_alone(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce")
    folder = tmp_path / one.name
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is no run"):
        train_stack([one], toy_cache, tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds another run"):
        train_stack([one], toy_cache, tmp_path)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_one_sentence(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce")
    run = Run(tmp_path / one.name)
    run.start(one)
    (run.path / run.checkpoint(1)).write_bytes(b"torn")
    with pytest.raises(DataError, match="missing or damaged"):
        train_stack([one], toy_cache, tmp_path)


def test_a_run_and_another_cache(toy_cache: Path, tmp_path: Path) -> None:
    one = config(toy_cache, "infonce")
    other = one.model_copy(update={"data": one.data.model_copy(update={"image_digest": "0" * 64})})
    with pytest.raises(DataError, match="other image features"):
        reopen(toy_cache, other.data)
    with pytest.raises(DataError, match="no run folder"):
        evaluate(tmp_path)


def test_collapsed_heads_score_chance(toy_cache: Path, tmp_path: Path) -> None:
    path = train("infonce", cache=toy_cache, runs=tmp_path, overrides=TINY, **SMALL)
    state = {k: torch.zeros_like(v) for k, v in load_file(path / "head.safetensors").items()}
    from safetensors.torch import save_file

    for side in ("image", "text"):
        state[f"{side}.linear.bias"] += 1
        state[f"{side}.scale"] += 1
    save_file(state, path / "head.safetensors")
    found = evaluate(path)
    assert (found["t2i"]["r1"], found["t2i"]["r5"], found["t2i"]["r10"]) == (10, 50, 100)
    assert found["i2t"]["r1"] == 10


def test_embeddings_are_normalised(toy_cache: Path, tmp_path: Path) -> None:
    path = train("infonce", cache=toy_cache, runs=tmp_path, overrides=TINY, **SMALL)
    run = Run(path)
    features = open_features(toy_cache)
    image, text, caption_image = embeddings(run, run.config(), features, "test", torch.device("cpu"))
    assert image.shape[0] == 10
    assert text.shape[0] == caption_image.shape[0] == 50
    torch.testing.assert_close(image.norm(dim=1), torch.ones(10))


def test_the_lists_of_hits_agree_with_the_recalls(toy_cache: Path, tmp_path: Path) -> None:
    path = train("infonce", cache=toy_cache, runs=tmp_path, overrides=TINY, **SMALL)
    lists = load_file(path / "retrieved.safetensors")
    results = json.loads((path / "results.json").read_text())
    image_of = torch.arange(50) // 5
    for k in (1, 5, 10):
        own = image_of[lists["i2t"][:, :k]] == torch.arange(10).unsqueeze(1)
        assert own.any(1).float().mean().item() * 100 == pytest.approx(results["i2t"][f"r{k}"])
        hit = lists["t2i"][:, :k] == image_of.unsqueeze(1)
        assert hit.any(1).float().mean().item() * 100 == pytest.approx(results["t2i"][f"r{k}"])


def test_bfloat16_trains(toy_cache: Path, tmp_path: Path) -> None:
    configs = [config(toy_cache, name, "schedule.precision=bfloat16", noise=0.8) for name in FAMILIES]
    for path in train_stack(configs, toy_cache, tmp_path):
        assert all(entry["loss"] is not None for entry in history(path))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_every_loss_trains_in_one_stack_without_a_nan(toy_cache: Path, tmp_path: Path, noise: float) -> None:
    configs = [config(toy_cache, name, noise=noise) for name in LOSSES]
    for path in train_stack(configs, toy_cache, tmp_path):
        assert all(entry["loss"] is not None for entry in history(path))


def test_learning_rate_rises_and_falls() -> None:
    schedule = config_schedule = RunConfig.model_fields["schedule"].default.model_copy(
        update={"warmup": 0.1, "lr": 1.0}
    )
    rates = [learning_rate(schedule, step, 100) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    constant = config_schedule.model_copy(update={"decay": "constant"})
    assert learning_rate(constant, 99, 100) == 1.0


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        ("tripplet", {}, "did you mean 'triplet'"),
        ("triplet", {"noise": 1.0}, r"\[0, 1\)"),
        ("triplet", {"noise_protocol": "nrc"}, "noise.protocol"),
        ("triplet", {"head": "defualt"}, "did you mean 'default'"),
        ("triplet", {"overrides": ["head.dims=3"]}, "did you mean 'head.dim'"),
        ("triplet", {"overrides": ["loss.margn=3"]}, "did you mean 'loss.margin'"),
        ("triplet", {"overrides": ["loss.margin=wide"]}, "cannot be"),
        ("triplet", {"overrides": ["head.dim=-3"]}, "head.dim"),
        ("triplet", {"overrides": ["head.dim"]}, "takes key=value"),
        ("triplet", {"epochs": 0}, "schedule.epochs"),
        ("triplet", {"lr": -1}, "schedule.lr"),
        ("triplet", {"batch_size": 1000}, "larger than the 200 training captions"),
        ("triplet", {"device": "tpu9"}, "not available"),
        ("triplet", {"device": "meta"}, "not available"),
        ("triplet", {"seed": 2**32}, "seed"),
        ("triplet", {"overrides": ["schedule.lr=Infinity"]}, "schedule.lr"),
        ("triplet", {"overrides": ["loss.margin=NaN"]}, "cannot be"),
        ("triplet", {"overrides": ["noise.file=x.npy"]}, "unknown key"),
    ],
)
def test_wrong_input_is_one_sentence(
    toy_cache: Path, tmp_path: Path, loss: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(loss, cache=toy_cache, runs=tmp_path, **given)


def test_whole_numbers_and_their_floats_are_one_run(toy_cache: Path) -> None:
    names = {config(toy_cache, "infonce", f"loss.scale={scale}").name for scale in ("20", "20.0", "2e1")}
    assert len(names) == 1


def test_a_noise_file_is_known_by_its_content(toy_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    true = np.arange(200) // 5
    names = []
    for seed in (0, 1):
        np.save(path, ncr(true, 0.5, seed))
        names.append(config(toy_cache, "infonce", noise_file=path).name)
    assert names[0] != names[1]
    run = train_stack([config(toy_cache, "infonce", noise_file=path)], toy_cache, tmp_path / "runs")[0]
    noise = json.loads((run / "manifest.json").read_text())["noise"]
    assert noise["digest"] == corrupt(true, "ncr", 0.5, 1).digest
