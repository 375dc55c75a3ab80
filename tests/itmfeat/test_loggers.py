"""Loggers, each read back with its own library: every point once, and a training that outlives them."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import call, fails

from itmfeat.api import train
from itmfeat.errors import DataError, MissingPackageError, UsageError
from itmfeat.loggers import WRITERS, Stream, export, named

NAME = "toy-grid-words-snll-ncr0.2-s0-00000000"
EPOCHS = 3


def make(folder: Path, epochs: int, finished: bool = False) -> Path:
    """A run folder after so many epochs."""
    run = folder / NAME
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"data": {"dataset": "toy"}, "seed": 0}))
    lines = [
        {"epoch": n, "step": 10 * n, "loss": None if n == 2 else 1 / n, "val": {"rsum": 100.5 + n}}
        for n in range(1, epochs + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if finished:
        results = {"protocol": "1k", "images": 10, "i2t": {"r1": 5.0}, "rsum": 110.5}
        (run / "results.json").write_text(json.dumps(results))
    return run


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every logger keeps its things here, and asks no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def in_three_steps(tmp_path: Path, name: str) -> Path:
    """Exported after one epoch, after all, and finished; each once more, which adds nothing."""
    pytest.importorskip(name)
    for epochs, finished, new in ((1, False, 1), (EPOCHS, False, 2), (EPOCHS, True, 1)):
        run = make(tmp_path, epochs, finished)
        assert export(run, name) == new
        assert export(run, name) == 0
    return run


def test_tensorboard_has_each_point_once(tmp_path: Path) -> None:
    run = in_three_steps(tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    points = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points == {
        "loss": [(1, 1.0), (3, pytest.approx(1 / 3))],
        "val/rsum": [(1, 101.5), (2, 102.5), (3, 103.5)],
        "test/i2t_r1": [(3, 5.0)],
        "test/rsum": [(3, 110.5)],
    }
    assert events.Tags()["tensors"] == ["configuration/text_summary"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore:The ``noload`` loader strategy")
def test_mlflow_has_each_point_once(tmp_path: Path) -> None:
    in_three_steps(tmp_path, "mlflow")
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()  # stdout is for results

    client = MlflowClient()
    experiment = client.get_experiment_by_name("itmfeat")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == NAME
    assert run.info.status == "FINISHED"
    assert run.data.params == {"dataset": "toy", "seed": "0"}
    found = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val/rsum")]
    assert sorted(found) == [(1, 101.5), (2, 102.5), (3, 103.5)]
    assert run.data.metrics["test/rsum"] == 110.5


@pytest.mark.slow
def test_wandb_offline_has_each_point_once(tmp_path: Path) -> None:
    in_three_steps(tmp_path, "wandb")
    found = b"".join(file.read_bytes() for file in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")))
    for value in (b"101.5", b"102.5", b"103.5", b"110.5"):
        assert value in found
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 3  # nothing new makes no folder


@pytest.mark.slow
def test_trackio_has_each_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):  # it reads TRACKIO_DIR when it is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
    in_three_steps(tmp_path, "trackio")
    points = sqlite_storage.SQLiteStorage.get_logs("itmfeat", NAME)
    assert [(p["step"], p["val/rsum"]) for p in points if "val/rsum" in p] == [
        (1, 101.5),
        (2, 102.5),
        (3, 103.5),
    ]
    assert [p["test/rsum"] for p in points if "test/rsum" in p] == [110.5]


def test_train_sends_each_epoch_and_the_test_metrics(tmp_path: Path, toy_cache: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = call(
        *("train", "--loss", "snll", "--cache", toy_cache, "--epochs", 2, "--set", "head.dim=8"),
        *("--log", "tensorboard", "--json"),
    )
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    events = EventAccumulator(results["run"])
    events.Reload()
    assert [point.step for point in events.Scalars("val/rsum")] == [1, 2]
    assert events.Scalars("test/rsum")[0].value == pytest.approx(results["rsum"])
    again = json.loads(call("log", "runs", "--to", "tensorboard", "--json").stdout)
    assert again == [{"run": results["run"], "logger": "tensorboard", "points": 0}]


def test_a_logger_that_fails_is_told_once_and_stops_no_training(
    tmp_path: Path, toy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, path: Path, config: dict[str, object]) -> None:
            raise OSError("no route\nto the host")

    monkeypatch.setitem(WRITERS, "tensorboard", Broken)
    notes: list[str] = []
    with Stream(["tensorboard"], notes.append) as stream:
        run = train("snll", cache=toy_cache, epochs=2, logged=stream, overrides=["head.dim=8"])
    assert (run / "results.json").exists()
    assert notes == [
        "tensorboard failed, and training goes on without it (no route); "
        "`itmfeat log RUN --to tensorboard` sends what is missing"
    ]


def test_names_are_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'wandb'"):
        named("tensorboard,wandbb")
    monkeypatch.setattr("itmfeat.loggers.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itmfeat\[mlflow\]'"):
        named("mlflow")
    assert named("") == []


def test_wrong_input_is_one_sentence(tmp_path: Path) -> None:
    fails(2, "unknown logger 'tensorbord'", "log", tmp_path, "--to", "tensorbord")
    if find_spec("tensorboard"):
        fails(3, "there is no run in", "log", tmp_path, "--to", "tensorboard")
        (make(tmp_path, 1) / "metrics.jsonl").write_text("{")
        with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
            export(tmp_path / NAME, "tensorboard")
