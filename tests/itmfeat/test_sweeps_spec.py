"""What a sweep may ask for: grids from files and flags, and what is wrong with them in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from processes import call, fails

from itmfeat.errors import ItmfeatError
from itmfeat.sweeps.expand import settings
from itmfeat.sweeps.spec import Spec, read_spec

Wanted = dict[str, Any]


def written(folder: Path, text: str) -> Path:
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def found(spec: Spec) -> list[tuple[str, float, str, int]]:
    """Loss, noise and seed of each setting."""
    configs = [setting.config for setting in settings(spec)]
    return [(c.label, c.noise.ratio, c.noise.protocol, c.seed) for c in configs]


def test_flags_and_file_mean_the_same(toy_cache: Path, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        f"""
        cache: {toy_cache}
        loss: [triplet, snll+ncr]
        noise: [0, 0.2]
        seed: [0, 1]
        lr: 1e-3
        """,
    )
    flags = {"loss": ["triplet", "snll+ncr"], "noise": ["0", "0.2"], "seed": ["0", "1"], "lr": ["1e-3"]}
    of_file, of_flags = (
        settings(read_spec(*given)) for given in ((file, {}), (None, flags | {"cache": toy_cache}))
    )
    assert of_file == of_flags
    assert len(of_file) == 8
    assert {setting.config.schedule.lr for setting in of_file} == {1e-3}


def test_a_flag_takes_the_place_of_a_key(toy_cache: Path, tmp_path: Path) -> None:
    file = written(tmp_path, f"name: a\ncache: {toy_cache}\nloss: triplet\nseed: [0, 1, 2]\n")
    spec = read_spec(file, {"seed": [7]})
    assert spec.runs == Path("runs/a")
    assert found(spec) == [("triplet", 0, "ncr", 7)]


def test_a_flag_takes_the_place_of_a_key_under_its_long_name(toy_cache: Path, tmp_path: Path) -> None:
    file = written(tmp_path, f"cache: {toy_cache}\nloss: triplet\nschedule.epochs: 9\n")
    assert [made.config.schedule.epochs for made in settings(read_spec(file, {"epochs": 2}))] == [2]


def test_grids_are_united_and_share_what_stands_above_them(toy_cache: Path, tmp_path: Path) -> None:
    text = """
    epochs: 2
    seed: [0, 1]
    grids:
      - {loss: triplet, noise: [0, 0.4]}
      - {loss: [triplet, infonce], noise: 0.4, seed: 0}
    """
    spec = read_spec(written(tmp_path, text), {"cache": toy_cache})
    both = found(spec)
    assert len(spec) == 6
    assert len(both) == len(set(both)) == 5  # triplet at 0.4 with seed 0 is in both
    assert ("infonce", 0.4, "ncr", 0) in both


def test_losses_carry_grids_of_their_parameters(toy_cache: Path, tmp_path: Path) -> None:
    text = """
    loss:
      - infonce
      - {name: triplet+ncr, margin: [0.1, 0.2], robust.warm: 1, schedule.lr: [1e-3, 1e-2]}
    head.dim: [16, 32]
    """
    made = settings(read_spec(written(tmp_path, text), {"cache": toy_cache}))
    triplet = [setting.config for setting in made if setting.config.loss["name"] == "triplet"]
    assert len(made) == 2 + 8
    facts = {(c.loss["margin"], c.schedule.lr, c.head.dim) for c in triplet}
    assert facts == {(m, lr, dim) for m in (0.1, 0.2) for lr in (1e-3, 1e-2) for dim in (16, 32)}
    assert {c.robust["name"] for c in triplet} == {"ncr"}


def test_without_noise_the_first_protocol_stands_for_all(toy_cache: Path) -> None:
    flags: Wanted = {
        "loss": "triplet",
        "noise": [0, 0.4],
        "noise_protocol": ["decl", "ncr"],
        "noise_seed": [1, 2],
    }
    spec = read_spec(None, flags | {"cache": toy_cache})
    kinds = [(c.noise.ratio, c.noise.protocol, c.noise.seed) for c in (s.config for s in settings(spec))]
    assert sorted(kinds) == [(0, "decl", 1), *((0.4, p, s) for p in ("decl", "ncr") for s in (1, 2))]


WRONG = {
    "los: triplet": "study.yaml, line 1: unknown key 'los': did you mean 'loss'?",
    "epochs: 2\nloss: [triplet, tripet]": "study.yaml, line 2: unknown loss 'tripet': did you mean 'triplet'",
    "loss: triplet+nrc": "line 1: unknown robust method 'nrc': did you mean 'ncr'",
    "loss: [{name: triplet, margn: 1}]": "line 1, triplet: unknown key 'loss.margn': did you mean",
    "loss: [{margin: 1}]": "line 1: a loss with parameters is written",
    "loss: []": "line 1: loss is empty",
    "loss: triplet\nseed: []": "line 2: seed is empty",
    "loss: triplet\nseed:": "line 2: seed must be a whole number, not nothing",
    "loss: triplet\nseed: yes": "line 2: seed must be a whole number, not True",
    "loss: triplet\nnoise: 1.2": "line 2: the noise ratio must lie in",
    "loss: triplet\nnoise: {a: 1}": "line 2: unknown part of the range of noise 'a'",
    "loss: triplet\nnoise: {low: 0, high: 0.5}": "line 2: ranges are for a search",
    "loss: triplet\nnoise: [[0]]": "line 2: noise must be a number, not a list",
    "loss: triplet\nrobust: ncr": "line 2: write the robust method with its loss",
    "loss: triplet\nset: {loss.margin: 1}": "line 2: each key that --set takes is one here",
    "loss: triplet\nnoise_file: a.npy\nnoise: 0.1": "noise_file stands in the place of noise",
    "loss: triplet\nloss: snll": "line 2: the key 'loss' is there twice",
    "loss: [triplet\nnoise: 0": "study.yaml, line 2: no YAML",
    "- triplet": "study.yaml, line 1: a sweep is a mapping",
    "": "study.yaml is empty",
    "loss: triplet\ngrids: [{name: a}]": "line 2: name stands at the top of a file",
    "grids: []": "line 1: `grids` is a list of mappings",
    "noise: 0": "name losses, as in --loss",
    "loss: triplet\nhead: mean-liner": "line 2: unknown head 'mean-liner': did you mean",
    "loss: triplet\nhead.dim: wide": "line 2: head.dim: .*not 'wide'",
    "loss: [triplet, infonce]\nloss.margin: 0.1": "study.yaml, line 2, infonce: unknown key 'loss.margin'",
    "loss: triplet\nrobust.warm: 1": "line 2, triplet: the robust method none has no parameters: name one",
    "loss: triplet\nlr: 1\nschedule.lr: 1": "line 3: lr and schedule.lr are one key; give one of them",
    "loss: triplet\nschedule.seed: 1": "line 2: unknown key 'schedule.seed'",
    "name: ../b\nloss: triplet": "line 1: name is that of one folder, not '../b'",
    "name: ..\nloss: triplet": "line 1: name is that of one folder, not '..'",
    "loss: triplet\nepochs: 3\nnoise: 0.3\nnoise_seed: published": "line 3, .*, line 4: no seed is published",
    "loss: triplet\0": "study.yaml: no YAML, it holds the character 0x0000",
    "loss: &a [*a]": "study.yaml: a value contains itself",
    "loss: triplet\ncache: caches/none\nimage_backbone: toy": "error: study.yaml, line 2: caches/none is no",
    "loss: triplet\ntext_backbone: tyo": "error: study.yaml, line 2: unknown text backbone in .* 'tyo'",
    f"loss: triplet\nseed: {list(range(101))}\nloss.margin: {list(range(100))}": "10100 settings; .* --yes",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_in_one_sentence_before_anything_starts(
    toy_cache: Path, at: Path, text: str
) -> None:
    extra = [] if "cache" in text else ["--cache", toy_cache]
    code = 3 if "caches/none" in text else 2
    fails(code, WRONG[text], "sweep", written(at, text), *extra)
    assert [file.name for file in at.iterdir()] == ["study.yaml"]


def test_a_flag_may_be_repeated(toy_cache: Path, at: Path) -> None:
    given = ["--loss", "triplet,snll", "--loss", "infonce", "--seed", 1, "--cache", toy_cache]
    assert "3 settings" in call("sweep", *given, "--dry-run").stdout
    commands = json.loads(call("sweep", *given, "--print-commands", "--json").stdout)
    assert "--loss triplet,snll,infonce --cache" in commands[0]


def test_wrong_flags(toy_cache: Path, at: Path) -> None:
    where = ["--cache", toy_cache]
    fails(2, "--loss: unknown loss 'tripet'", "sweep", "--loss", "tripet", *where)
    fails(2, "--loss has an empty value", "sweep", "--loss", "triplet,", *where)
    fails(2, "--set takes section.key=value", "sweep", "--loss", "triplet", "--set", "margin", *where)
    fails(2, "unknown key 'loss.margn'", "sweep", "--loss", "triplet", "--set", "loss.margn=1", *where)
    fails(2, "--workers must be at least 1", "sweep", "--loss", "triplet", "--workers", 0, *where)
    fails(2, "--stack takes i/n", "sweep", "--loss", "triplet", "--stack", "5/4", *where)
    fails(2, "go with --search optuna", "sweep", "--loss", "triplet", "--trials", 3, *where)
    both = ["--print-commands", "--stack", "1/1"]
    fails(2, "leave out --stack", "sweep", "--loss", "triplet", *both, *where)
    fails(2, "unknown --resident 'moon'", "sweep", "--loss", "triplet", "--resident", "moon", *where)
    fails(3, "there is no file none.yaml", "sweep", "none.yaml", *where)
    fails(3, "is a folder; name the YAML file", "sweep", at, *where)
    fails(3, "--cache: .*nowhere", "sweep", "--loss", "triplet", "--cache", "nowhere")
    assert not list(at.iterdir())


def test_many_settings_can_be_meant(toy_cache: Path, tmp_path: Path) -> None:
    flags: Wanted = {"loss": "triplet", "seed": range(10_001), "cache": toy_cache}
    with pytest.raises(ItmfeatError, match="10001 settings"):
        settings(read_spec(None, flags))
    flags["seed"] = range(100)
    assert len(settings(read_spec(None, flags), yes=True)) == 100


def test_the_plan_shows_what_tells_its_stacks_apart(toy_cache: Path, at: Path) -> None:
    where = ["--cache", toy_cache, "--dry-run", "--head", "mean-linear"]
    found = call("sweep", "--loss", "triplet", "--lr", "1e-3,1e-2", *where).stdout
    assert "lr=0.001" in found
    assert "lr=0.01 " in found
    assert "epochs=" not in found


def test_a_place_that_cannot_hold_runs_is_named_before_anything_starts(toy_cache: Path, at: Path) -> None:
    (at / "file").touch()
    found = call("sweep", "--loss", "triplet", "--cache", toy_cache, "--runs", at / "file" / "runs", "--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert re.search(r"no run folder can be made in .*runs \(Not a directory\); name another", found.stderr)


def test_a_dry_run_touches_nothing(toy_cache: Path, at: Path) -> None:
    found = call("sweep", "--loss", "triplet,snll+ncr", "--cache", toy_cache, "--dry-run")
    assert found.exit_code == 0
    assert "2 settings: 2 to train in 1 stack;" in found.stdout
    assert not list(at.iterdir())
