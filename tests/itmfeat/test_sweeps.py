"""Sweeps: what trains side by side, what is kept, and how each executor ends."""

import json
import os
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import HANG, call, children, fails, finish_under_kills, kill

import itmfeat
from itmfeat.console import Board
from itmfeat.errors import ItmfeatError
from itmfeat.memory import Memory
from itmfeat.runs import Run
from itmfeat.sweeps import plan_sweep, sweep
from itmfeat.sweeps.expand import settings
from itmfeat.sweeps.plan import make_plan
from itmfeat.sweeps.spec import read_spec
from itmfeat.training import train_stack

ROOM = 1 << 34  # bytes, more than enough
TINY: dict[str, Any] = {"head": "mean-linear", "head.dim": 8, "epochs": 2, "batch_size": 50, "lr": 1e-2}
GRID: dict[str, Any] = {"loss": ["triplet", "snll+ncr"], "noise": [0, 0.4], "seed": [0, 1]} | TINY


def flags(grid: dict[str, Any]) -> list[str]:
    """A grid as the command line has it."""
    found = []
    for key, value in grid.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        found += ["--set", f"{key}={text}"] if "." in key else [f"--{key.replace('_', '-')}", text]
    return found


def outcome(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Test results and heads of all runs in a folder."""
    return {
        run.name: ((run / "results.json").read_bytes(), (run / "head.safetensors").read_bytes())
        for run in folder.iterdir()
    }


@pytest.fixture(scope="module")
def whole(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, trained in one stack without disturbance."""
    runs = tmp_path_factory.mktemp("whole")
    assert len(itmfeat.sweep(cache=toy_cache, runs=runs, **GRID)) == 8
    return runs


def test_each_setting_is_the_run_that_train_would_make(toy_cache: Path, whole: Path, tmp_path: Path) -> None:
    config = next(c for c in (Run(path).config() for path in whole.iterdir()) if c.label == "snll+ncr")
    (alone,) = train_stack([config], toy_cache, tmp_path)
    of_sweep = Run(whole / config.name)
    assert set(os.listdir(alone)) == set(os.listdir(of_sweep.path))
    for mine, theirs in zip(Run(alone).metrics(), of_sweep.metrics(), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_finished_settings_are_kept_and_new_ones_added(toy_cache: Path, whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    events: list[dict[str, Any]] = []
    folders = sweep(cache=toy_cache, runs=whole, tell=events.append, **GRID)
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before
    assert [event["event"] for event in events] == ["planned", "done"]
    assert sorted(folders) == sorted(whole.iterdir())
    plan = plan_sweep(cache=toy_cache, runs=whole, **GRID | {"seed": [1, 2]})
    assert len(plan.finished) == 4
    assert [s.config.seed for stack in plan.stacks for s in stack.settings] == [2] * 4
    changed = plan_sweep(cache=toy_cache, runs=whole, **GRID | {"lr": 2e-2})
    assert not changed.finished


def test_events_tell_the_whole_story(toy_cache: Path, tmp_path: Path) -> None:
    where = ["--cache", toy_cache, "--runs", tmp_path / "runs"]
    found = call("sweep", *flags(GRID), *where, "--width", 6, "--json")
    assert found.exit_code == 0, found.stderr
    events = [json.loads(line) for line in found.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    stack = ["started", "epoch", "epoch", "finished", "finished", "finished", "finished"]
    assert kinds == ["planned", *stack, *stack, "done"]
    assert len(events[2]["val_rsum"]) == 4
    assert events[-1]["finished"] == 8
    assert [part["nets"] for part in events[0]["stacks"]] == [6, 6]


def test_stacks_hold_what_can_be_stacked(toy_cache: Path, tmp_path: Path) -> None:
    grid = GRID | {"noise_protocol": ["ncr", "decl"], "head.dim": [8, 16], "cache": toy_cache}
    made = settings(read_spec(None, grid))
    for width in (1, 2, 5, 100):
        plan = make_plan(made, tmp_path, ROOM, width=width)
        planned = [setting for stack in plan.stacks for setting in stack.settings]
        assert sorted(s.config.digest for s in planned) == sorted(s.config.digest for s in made)
        for stack in plan.stacks:
            assert stack.nets <= max(width, 2)  # a run of two nets is never cut
            assert len({setting.config.stackable() for setting in stack.settings}) == 1
    noises = [setting.config.noise for setting in plan.stacks[0].settings]
    assert len([1 for one, other in pairwise(noises) if one != other]) == 2  # of 3 kinds


def test_the_width_follows_from_the_memory(toy_cache: Path, tmp_path: Path) -> None:
    made = settings(read_spec(None, {"loss": "triplet", "seed": range(100), "cache": toy_cache}))
    assert max(stack.nets for stack in make_plan(made, tmp_path, ROOM).stacks) <= 32
    assert len(make_plan(made, tmp_path, ROOM, workers=10).stacks) == 10
    one, two = (make_plan(made[:runs], tmp_path, ROOM).stacks[0].bytes for runs in (1, 2))
    room = one + 4 * (two - one)
    assert max(stack.bytes for stack in make_plan(made, tmp_path, room).stacks) == room
    assert max(stack.nets for stack in make_plan(made, tmp_path, room).stacks) == 5
    with pytest.raises(ItmfeatError, match="--width 1 to train it nevertheless"):
        make_plan(made, tmp_path, one - 1)


def test_a_diverged_setting_is_named_after_all_others_finished(toy_cache: Path, tmp_path: Path) -> None:
    grid = {"loss": [{"name": "snll", "schedule.lr": [1e-2, 1e36]}]} | TINY
    del grid["lr"]
    for _ in range(2):  # the second time nothing is left to train
        with pytest.raises(ItmfeatError, match=r"snll-ncr0-s0-\w+ diverged: .* lower learning rate"):
            sweep(cache=toy_cache, runs=tmp_path, **grid)
    assert sorted(Run(path).finished for path in tmp_path.iterdir()) == [False, True]


def test_a_stack_that_fails_does_not_stop_the_others(toy_cache: Path, tmp_path: Path) -> None:
    grid = GRID | {"loss": "triplet", "noise": 0}
    first = plan_sweep(cache=toy_cache, runs=tmp_path, **grid).settings[0].config
    run = Run(tmp_path / first.name)
    run.start(first)
    lock = run.lock()
    where = ["--cache", toy_cache, "--runs", tmp_path, "--width", 1]
    found = call("sweep", *flags(grid), *where)
    assert found.exit_code == 1
    assert f"{first.name} failed: " in found.stderr
    assert "is being trained right now" in found.stderr
    assert "losses" in found.stderr  # of the table of the plan
    os.close(lock)
    assert call("sweep", *flags(grid), *where).exit_code == 0


def test_a_setting_that_another_process_trains_is_left_to_it(toy_cache: Path, tmp_path: Path) -> None:
    grid = GRID | {"loss": "triplet"}
    plan = plan_sweep(cache=toy_cache, runs=tmp_path, **grid)
    run = Run(plan.folders()[1])
    run.start(plan.settings[1].config)
    lock = run.lock()
    assert len(plan.stacks) == 1
    with pytest.raises(ItmfeatError, match=rf"^{run.path.name} failed: .* is being trained right now"):
        sweep(cache=toy_cache, runs=tmp_path, **grid)
    assert [Run(path).finished for path in plan.folders()] == [True, False, True, True]
    os.close(lock)
    sweep(cache=toy_cache, runs=tmp_path, **grid)
    assert run.finished


def test_what_goes_wrong_on_a_device_does_not_stop_the_others(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(configs: Any, *rest: Any, **given: Any) -> list[Path]:
        if configs[0].seed == 0:
            raise RuntimeError("CUDA error: unspecified launch failure\nmore")
        return train_stack(configs, *rest, **given)

    monkeypatch.setattr("itmfeat.sweeps.work.train_stack", broken)
    grid = GRID | {"loss": "triplet", "noise": 0}
    with pytest.raises(ItmfeatError, match=r"s0-\w+ failed: RuntimeError: CUDA error: [\w ]+ \(in"):
        sweep(cache=toy_cache, runs=tmp_path, width=1, **grid)
    assert [Run(path).finished for path in tmp_path.iterdir()] == [True]


def test_nothing_of_a_stack_without_room_is_left_when_its_halves_train(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer: ...

    made: list[weakref.ref[Trainer]] = []

    def short(configs: Any, *rest: Any, **given: Any) -> list[Path]:
        assert all(reference() is None for reference in made)
        trainer = Trainer()
        made.append(weakref.ref(trainer))
        if len(configs) > 1:
            raise torch.OutOfMemoryError
        return train_stack(configs, *rest, **given)

    monkeypatch.setattr("itmfeat.sweeps.work.train_stack", short)
    grid = GRID | {"loss": "triplet", "noise": 0}
    folders = sweep(cache=toy_cache, runs=tmp_path, **grid)
    assert all(Run(folder).finished for folder in folders)
    assert len(made) == 3


def test_an_estimate_is_of_full_queues_behind_the_warm_up(
    toy_cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []

    def seen(self: Memory, s: Any, *rest: Any) -> Any:
        found = forward(self, s, *rest)
        widths.append(found.i2t.shape[-1] - s.i2t.shape[-1])
        return found

    forward = Memory.forward
    monkeypatch.setattr(Memory, "forward", seen)
    given = ["sweep", "--loss", "fne", "--set", "loss.memory=64", "--cache", toy_cache, "--dry-run"]
    assert "of training steps" in call(*given).stdout
    assert widths
    assert set(widths) == {64}


def test_commands_for_a_machine_with_another_device(toy_cache: Path, at: Path) -> None:
    given = ["sweep", "--loss", "triplet", "--cache", toy_cache, "--resident", "gpu"]
    assert "--resident gpu" in call(*given, "--print-commands").stdout
    if not torch.cuda.is_available():
        fails(2, "--resident gpu needs --device cuda", *given)


def test_no_room_for_an_estimate(toy_cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("itmfeat.sweeps.estimate._probe", short)
    given = ["sweep", "--loss", "triplet", "--cache", toy_cache, "--dry-run"]
    assert "no estimate of the time: a stack does not fit" in call(*given).stdout
    assert json.loads(call(*given, "--json").stdout)["step_seconds"] is None


def test_the_live_view_tells_no_time_before_its_second_step() -> None:
    board = Board()  # of three nets: 3 * (9 / 360) is a little more than 3 * 9 / 360
    stack = {"stack": 1, "nets": 3, "settings": ["a", "b", "c"]}
    board.tell({"event": "planned", "settings": 3, "finished": [], "stacks": [stack]})
    board.tell({"event": "started", "stack": 1, "runs": stack["settings"]})
    board.tell({"event": "step", "stack": 1, "done": 9, "total": 360})
    assert board._time_left() == 0
    board.tell({"event": "step", "stack": 1, "done": 10, "total": 360})
    assert 0 < board._time_left() < 60


def test_training_goes_on_when_nobody_reads_the_events(toy_cache: Path, tmp_path: Path) -> None:
    where = ["--cache", str(toy_cache), "--runs", str(tmp_path / "runs"), "--width", "2"]
    grid = flags(GRID | {"loss": "triplet"})  # two stacks
    command = [sys.executable, "-c", "from itmfeat.cli import main; main()", "sweep", *grid, *where]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"planned" in process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    assert len([run for run in (tmp_path / "runs").iterdir() if Run(run).finished]) == 4


def test_printed_commands_do_the_same(toy_cache: Path, whole: Path, at: Path) -> None:
    spec = at / "my study.yaml"
    spec.write_text(json.dumps(GRID | {"cache": str(toy_cache), "runs": "runs"}))
    found = call("sweep", spec, "--print-commands", "--width", 6)
    lines = found.stdout.splitlines()
    assert lines[1] == f"itmfeat sweep '{spec}' --width 6 --stack 2/2"
    assert "$SLURM_ARRAY_TASK_ID/2" in found.stderr
    assert json.loads(call("sweep", spec, "--print-commands", "--width", 6, "--json").stdout) == lines
    assert not (at / "runs").exists()
    folders = []
    for number in (2, 1):
        result = call("sweep", spec, "--width", 6, "--stack", f"{number}/2")
        assert result.exit_code == 0, result.stderr
        folders += result.stdout.splitlines()
    assert len(folders) == len(set(folders)) == 8
    assert outcome(at / "runs").keys() == outcome(whole).keys()
    again = call("sweep", spec, "--width", 6, "--stack", "2/2", "--json")
    planned = json.loads(again.stdout.splitlines()[0])
    assert planned["settings"] == len(planned["finished"]) == 4
    assert [stack["stack"] for stack in planned["stacks"]] == [2]
    assert call("sweep", spec, "--width", 6, "--stack", "3/3").exit_code == 2


@pytest.mark.slow
def test_workers_do_the_same_though_they_are_killed(toy_cache: Path, whole: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and not any(earlier["event"] == "epoch" for earlier in events):
            assert list(tmp_path.glob("*/checkpoint*"))
            both = children("itmfeat.sweeps.worker")  # of which one has 99 epochs before it, the other more
            assert len(both) == 2
            for worker in both:
                kill(worker)
        events.append(event)

    grid = GRID | {"epochs": 100}
    sweep(cache=toy_cache, runs=tmp_path, workers=2, width=6, tell=tell, **grid)
    assert [event["event"] for event in events].count("retried") == 2
    finished = [event["run"] for event in events if event["event"] == "finished"]
    assert len(finished) == len(set(finished)) == 8
    alone = tmp_path.parent / "undisturbed"
    sweep(cache=toy_cache, runs=alone, width=6, **grid)
    assert outcome(tmp_path) == outcome(alone)


@pytest.mark.slow
def test_what_kills_a_worker_twice_is_named(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ItmfeatError, match=r"and 7 more failed: its process ended with 1, 2 times"):
        sweep(cache=toy_cache, runs=tmp_path, workers=2, **GRID)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills_change_nothing(toy_cache: Path, tmp_path: Path, workers: int) -> None:
    grid = flags(GRID | {"epochs": 90})
    for name, kills in (("whole", 0), ("killed", 10)):
        where = ["--cache", str(toy_cache), "--runs", str(tmp_path / name), "--width", "6"]
        finish_under_kills(["sweep", *grid, *where, "--workers", str(workers)], kills, (3.0, 8.0))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
