"""Losses with a state and methods of robust training: in stacks, through kills, and what they log."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import config, history

from itmfeat.api import evaluate, train
from itmfeat.config import RunConfig
from itmfeat.errors import UsageError
from itmfeat.features import open_features
from itmfeat.losses import LOSSES
from itmfeat.members import member_of
from itmfeat.noise.separation import separation
from itmfeat.robust import METHODS
from itmfeat.sweeps import sweep
from itmfeat.training import Trainer, train_stack

# Each with its parameters cut to few epochs: the loss, the method, what to set.
CASES: list[tuple[str, str | None, list[str]]] = [
    ("fne", None, ["loss.memory=100", "loss.start=20"]),
    ("crcl", None, ["robust.every=1"]),
    ("decl", None, ["robust.warm=1"]),
    ("cream", None, ["robust.warm=1"]),
    ("infonce", "split", ["robust.warm=1"]),
    ("triplet", "ncr", ["robust.warm=1"]),
    ("snll", "ncr", ["robust.warm=1"]),
    ("triplet", "bicro", ["robust.warm=1"]),
    ("tal", "repair", ["robust.warm=2"]),
]
NAMES = [f"{loss}+{method}" for loss, method, _ in CASES]


def case(cache: Path, place: int, *more: str, **given: Any) -> RunConfig:
    loss, method, overrides = CASES[place]
    settings: dict[str, Any] = {"noise": 0.5, "epochs": 4, "head": "mean-linear", "robust": method} | given
    return config(cache, loss, "head.dim=16", *overrides, *more, **settings)


def test_every_method_is_tried() -> None:
    tried = {method or LOSSES[loss].robust for loss, method, _ in CASES}
    assert tried | {"osa"} == set(METHODS) | {"none"}  # osa needs features of one space; see below


@pytest.mark.slow
def test_each_run_of_a_stack_of_methods_equals_the_run_alone(toy_cache: Path, tmp_path: Path) -> None:
    configs = [case(toy_cache, place) for place in range(len(CASES))]
    together = train_stack(configs, toy_cache, tmp_path / "stack")
    for path, one in zip(together, configs, strict=True):
        alone = train_stack([one], toy_cache, tmp_path / "alone")[0]
        for mine, theirs in zip(history(path), history(alone), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3), one.label


@pytest.mark.parametrize("place", range(len(CASES)), ids=NAMES)
def test_a_kill_loses_no_state(toy_cache: Path, tmp_path: Path, place: int) -> None:
    one = case(toy_cache, place)
    whole = train_stack([one], toy_cache, tmp_path / "whole")[0]

    def kill(done: int, total: int, line: str) -> None:
        if done == 15:  # in the third of four epochs of six steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stack([one], toy_cache, tmp_path / "killed", progress=kill)
    again = train_stack([one], toy_cache, tmp_path / "killed")[0]
    assert history(again) == history(whole)
    assert (again / "head.safetensors").read_bytes() == (whole / "head.safetensors").read_bytes()


def test_two_nets_are_one_run(toy_cache: Path, tmp_path: Path) -> None:
    path = train_stack([case(toy_cache, NAMES.index("triplet+ncr"))], toy_cache, tmp_path)[0]
    state = load_file(path / "head.safetensors")
    assert state["image.linear.weight"].shape[0] == 2
    assert not torch.equal(*state["image.linear.weight"])
    assert evaluate(path) == json.loads((path / "results.json").read_text())
    assert "triplet+ncr" in path.name


def test_in_the_warm_up_the_first_of_two_nets_is_the_plain_run(toy_cache: Path, tmp_path: Path) -> None:
    pair = config(toy_cache, "infonce", "robust.warm=1", robust="ncr", epochs=1)
    plain = config(toy_cache, "infonce", epochs=1)
    paths = train_stack([pair, plain], toy_cache, tmp_path)
    both, one = (load_file(path / "head.safetensors")["image.linear.weight"] for path in paths)
    torch.testing.assert_close(both[:1], one)


def test_every_epoch_tells_clean_from_noisy(toy_cache: Path, tmp_path: Path) -> None:
    configs = [
        config(toy_cache, "infonce", noise=0.5, epochs=6),
        config(toy_cache, "infonce", noise=0, epochs=6),
        config(toy_cache, "infonce", "robust.warm=1", robust="split", noise=0.5, epochs=6),
    ]
    plain, clean, split = (history(path) for path in train_stack(configs, toy_cache, tmp_path))
    assert all(entry["separation"].keys() == {"auc"} for entry in plain)
    assert plain[-1]["separation"]["auc"] > 0.65
    assert not any("separation" in entry for entry in clean)
    assert split[-1]["separation"].keys() == {"auc", "precision", "recall"}
    assert split[-1]["separation"]["precision"] > 0.6  # half of the pairs are clean


def test_separation_counts_what_it_says() -> None:
    clean = np.array([True, True, False, False, True])
    match = np.array([0.9, 0.4, 0.5, 0.1, np.nan], np.float32)
    split = np.array([[True, False, True, False, True]])
    found = separation(clean, match, split)
    assert found == pytest.approx({"auc": 3 / 4, "precision": 2 / 3, "recall": 2 / 3})
    assert separation(np.ones(5, bool), match) == {}


def test_fne_tells_what_it_drew(toy_cache: Path, tmp_path: Path) -> None:
    path = train_stack([case(toy_cache, 0)], toy_cache, tmp_path)[0]
    entries = history(path)
    assert "memory" not in entries[0]  # the warm-up uses the batch alone
    assert 0 <= entries[-1]["memory"]["false_negatives"] <= 1
    assert entries[-1]["memory"]["mean_match"] > entries[-1]["memory"]["mean_negative"]


def test_restarts_begin_anew(toy_cache: Path, tmp_path: Path) -> None:
    configs = [
        config(toy_cache, "crcl", "robust.warm=0", f"robust.restarts={count}", "robust.every=3", epochs=6)
        for count in (0, 1)
    ]
    on, anew = (history(path) for path in train_stack(configs, toy_cache, tmp_path))
    assert [entry["loss"] for entry in on[:3]] == pytest.approx([entry["loss"] for entry in anew[:3]])
    assert anew[3]["loss"] > on[3]["loss"]


def test_a_restart_touches_one_run_alone(toy_cache: Path, tmp_path: Path) -> None:
    configs = [config(toy_cache, loss, "head.dim=16") for loss in ("crcl", "infonce")]
    features = open_features(toy_cache)
    trainer = Trainer([member_of(one, features, tmp_path) for one in configs], features, torch.device("cpu"))
    trainer.train_epoch(0, lambda *_: None, "")
    before = {name: value.clone() for name, value in trainer.stack.named_parameters()}
    again, other = trainer.stack.runs
    trainer._restart(again, 2)
    weight = trainer.stack.image.linear.weight
    name = "image.linear.weight"
    assert torch.equal(weight[other.nets], before[name][other.nets])
    assert not torch.equal(weight[again.nets], before[name][again.nets])
    moments = trainer.optimizer.state[weight]["exp_avg"]
    assert not moments[again.nets].any()
    assert moments[other.nets].any()


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        ("triplet", {"robust": "nrc"}, "did you mean 'ncr'"),
        ("triplet", {"robust": "ncr", "overrides": ["robust.wram=2"]}, "did you mean 'robust.warm'"),
        ("triplet", {"robust": "ncr", "overrides": ["robust.warm=soon"]}, "cannot be"),
        ("infonce", {"robust": "ncr", "overrides": ["robust.use=margin"]}, "takes no soft margins"),
        (
            "triplet",
            {"robust": "ncr", "overrides": ["robust.use=both"]},
            "known are auto, margin, confidence",
        ),
        ("triplet", {"robust": "ncr", "overrides": ["robust.threshold=7"]}, r"must be in \[0, 1\], not 7"),
        ("triplet", {"robust": "ncr", "overrides": ["robust.warm=-1"]}, "must be at least 0, not -1"),
        ("triplet", {"overrides": ["robust.warm=1"]}, "name one with the loss"),
        ("fne", {"overrides": ["loss.memory=0"]}, "must be at least 1"),
        ("fne", {"overrides": ["loss.prior=0"]}, "loss.prior of fne must be in"),
        ("triplet", {"robust": "osa"}, "12 dimensions and texts 8"),
    ],
)
def test_wrong_methods_are_one_sentence(
    toy_cache: Path, tmp_path: Path, loss: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(loss, cache=toy_cache, runs=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_table_names_methods_beside_losses(toy_cache: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 32, "head.dim": 16}
    losses = ["triplet", "triplet+ncr"]
    paths = sweep(loss=losses, noise=0.5, seed=(0, 1), cache=toy_cache, runs=tmp_path, **settings)
    assert [path.name.split("-")[3] for path in paths] == ["triplet", "triplet", "triplet+ncr", "triplet+ncr"]


def test_noise_that_changes_the_counts_cannot_be_stacked(toy_cache: Path) -> None:
    first, second = (
        config(toy_cache, "infonce", noise=0.5, noise_protocol=protocol)
        for protocol in ("replacement", "ncr")
    )
    assert first.stackable() != second.stackable()
