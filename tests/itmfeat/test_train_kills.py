"""A training process killed with no chance to clean up, and started again."""

from pathlib import Path

import pytest
from processes import finish_under_kills

ARGUMENTS = ["train", "--loss", "snll", "--noise", "0.4", "--epochs", "40", "--batch-size", "32"]


def results(folder: Path) -> tuple[bytes, bytes]:
    """Test results and heads of the only run in a folder."""
    (run,) = folder.iterdir()
    return (run / "results.json").read_bytes(), (run / "head.safetensors").read_bytes()


@pytest.mark.slow
def test_random_kills_change_nothing(toy_cache: Path, tmp_path: Path) -> None:
    for name, kills in (("whole", 0), ("killed", 6)):
        where = ["--cache", str(toy_cache), "--runs", str(tmp_path / name)]
        # 3: the last kill came after the results, so the run is finished already
        finish_under_kills(ARGUMENTS + where, kills, (1.5, 5.0), done=(0, 3))
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
