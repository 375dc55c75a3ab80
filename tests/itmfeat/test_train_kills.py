"""A training process killed with no chance to clean up, and started again."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ARGUMENTS = ["train", "--loss", "snll", "--noise", "0.4", "--epochs", "40", "--batch-size", "32"]


def results(folder: Path) -> tuple[bytes, bytes]:
    """Test results and heads of the only run in a folder."""
    (run,) = folder.iterdir()
    return (run / "results.json").read_bytes(), (run / "head.safetensors").read_bytes()


@pytest.mark.slow
def test_random_kills_change_nothing(toy_cache: Path, tmp_path: Path) -> None:
    def start(name: str) -> "subprocess.Popen[bytes]":
        where = ["--cache", str(toy_cache), "--runs", str(tmp_path / name)]
        code = "from itmfeat.cli import main; main()"
        command = [sys.executable, "-c", code, *ARGUMENTS, *where]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    rng, kills, finished = random.Random(), 0, False
    while kills < 6 and not finished:
        process = start("killed")
        try:
            process.wait(rng.uniform(1.5, 5.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            finished = True
    if not finished:
        assert start("killed").wait() in (0, 3)  # 3: the last kill came after the results
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
