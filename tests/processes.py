"""Commands under test: called in this process, or started as their own and killed."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from itmfeat.cli import app


def call(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(code: int, pattern: str, *arguments: object) -> None:
    """The command ends with the code and exactly one line on stderr, nothing on stdout."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.search(pattern, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1


def same(one: Path, other: Path) -> None:
    """Two caches hold the same files with the same bytes."""
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(other)) for file in other.rglob("*") if file.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def finish_under_kills(
    arguments: list[str], kills: int, between: tuple[float, float], done: tuple[int, ...] = (0,)
) -> None:
    """The command, killed so many times after random seconds, then left alone to end with one of `done`."""
    command = [sys.executable, "-c", "from itmfeat.cli import main; main()", *arguments]
    seconds = random.Random()
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(seconds.uniform(*between))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            break
    last = subprocess.run(command, check=False, capture_output=True, text=True)
    assert last.returncode in done, last.stderr
