"""Sweeps on a Ray cluster: two nodes on this machine, of which one dies."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import HANG, fails, wait_until

from itmfeat.errors import ItmfeatError, MissingPackageError
from itmfeat.ray_connection import connection
from itmfeat.runs import Run
from itmfeat.sweeps.cluster import Share, train
from itmfeat.sweeps.sweep import Site, plan_sweep

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
EPOCHS = 60
GRID = ["--loss", "triplet,infonce", "--noise", "0,0.4", "--seed", "0,1,2", "--head", "mean-linear"]
SIZE = ["--set", "head.dim=8", "--epochs", str(EPOCHS), "--batch-size", "50", "--width", "2"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of a core each, whose death is found within seconds."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # as others on a busy machine
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # others may have filled the memory
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    made.second = made.add_node(**size)
    yield made
    made.shutdown()


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_twelve_settings_outlive_a_node(toy_cache: Path, tmp_path: Path, cluster: Any) -> None:
    runs = tmp_path / "runs"
    where = ["--cache", str(toy_cache), "--runs", str(runs), "--engine", "ray", "--address", cluster.address]
    command = [sys.executable, "-c", "from itmfeat.cli import main; main()", "sweep", *GRID, *SIZE, *where]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def both_at_work() -> bool:
        """Two stacks of two runs are, each on a node of its own."""
        return len({file.parent for file in runs.glob("*/checkpoint*")}) > 2

    wait_until(lambda: process.poll() is not None or both_at_work(), "both nodes are at work")
    assert process.poll() is None, process.communicate()
    cluster.remove_node(cluster.second, allow_graceful=False)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    finished = [event["run"] for event in events if event["event"] == "finished"]
    assert len(finished) == len(set(finished)) == 12
    assert events[-1] == events[-1] | {"event": "done", "finished": 12, "failed": 0, "diverged": 0}
    assert all(len(Run(path).metrics()) == EPOCHS for path in runs.iterdir())
    assert sorted(os.listdir(runs)) == sorted(finished)


class FakeRay:
    """What `Share.of` asks of a cluster."""

    def __init__(self, *machines: dict[str, float]) -> None:
        self._machines = machines

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self._machines]


def test_what_a_stack_takes_of_a_cluster() -> None:
    machine = {"CPU": 8.0, "memory": 64e9}
    assert Share.of(FakeRay(machine, machine), "auto", None, None) == Share(8, 0, 2, 64_000_000_000)
    assert Share.of(FakeRay(machine, machine), "auto", None, 5) == Share(2, 0, 5, 21_333_333_333)
    gpus = machine | {"GPU": 2.0}
    assert Share.of(FakeRay(gpus, gpus), "auto", None, None) == Share(1, 1, 4, None)
    assert Share.of(FakeRay(gpus, gpus), "cuda", 0.5, 6) == Share(1, 0.5, 6, None)
    assert Share.of(FakeRay(gpus), "cpu", None, None) == Share(8, 0, 1, 64_000_000_000)


def test_what_a_cluster_cannot_give_is_said_at_once() -> None:
    with pytest.raises(ItmfeatError, match="no CPUs to give"):
        Share.of(FakeRay({"GPU": 1.0}), "auto", None, None)
    one = {"CPU": 8.0, "GPU": 1.0}
    with pytest.raises(ItmfeatError, match=r"no machine of the Ray cluster has 2 GPUs .* --gpus 1 or less"):
        Share.of(FakeRay(one, one), "auto", 2, None)
    with pytest.raises(ItmfeatError, match="has no GPU"):
        Share.of(FakeRay({"CPU": 8.0}), "auto", 0.5, None)


def test_a_task_keeps_the_arguments_of_the_command(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["itmfeat", "sweep"])
    plan = plan_sweep(loss="triplet", head="mean-linear", epochs=1, cache=toy_cache, runs=tmp_path)
    (job,) = Site().jobs(plan)
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    monkeypatch.chdir(tmp_path)
    events = train(job, str(tmp_path))
    assert [event["event"] for event in events if event["event"] != "note"] == ["finished"]
    assert Run(plan.folders()[0]).read("manifest.json")["argv"] == ["itmfeat", "sweep"]


def test_wrong_requests(toy_cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["sweep", "--loss", "triplet", "--cache", toy_cache]
    fails(2, "unknown engine 'rya': did you mean 'ray'", *given, "--engine", "rya")
    fails(2, "--address and --gpus go with --engine ray", *given, "--gpus", "0.5")
    fails(2, "--gpus is the share of a stack", *given, "--engine", "ray", "--gpus", "0")
    fails(2, "--gpus is a part of one GPU, or whole GPUs", *given, "--engine", "ray", "--gpus", "1.5")
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(4, r"pip install 'itmfeat\[ray\]'", *given, "--engine", "ray")
    with pytest.raises(MissingPackageError), connection(None):
        pass
    assert not list(at.iterdir())


@needs_ray
def test_a_cluster_that_does_not_answer(toy_cache: Path, at: Path) -> None:
    given = ["sweep", "--loss", "triplet", "--cache", toy_cache, "--engine", "ray"]
    fails(1, "no Ray cluster answers", *given, "--address", "127.0.0.1:1")
    fails(1, "ray:// names no host and port", *given, "--address", "ray://")
    fails(1, r"Ray does not start \(Invalid address format: foo\)", *given, "--address", "foo")


@needs_ray
def test_a_port_that_is_none_of_ray(toy_cache: Path, at: Path) -> None:
    def refuse() -> None:
        with server.accept()[0] as asking:
            asking.recv(1024)
            asking.sendall(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse, daemon=True).start()
        where = ["--engine", "ray", "--address", f"127.0.0.1:{server.getsockname()[1]}"]
        fails(1, "not that of the dashboard", "sweep", "--loss", "triplet", "--cache", toy_cache, *where)
