"""Commands under test: called in this process, or started as their own and killed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner, Result

from itmfeat.cli import app

HANG = 900  # seconds after which something waits for ever; no test asks how quick a machine is
CHROMIUM = ["--no-sandbox", "--disable-gpu"]  # where there is none, its process is one more that can stall
PATIENCE = 120_000  # milliseconds for a step in the browser, whose error says which step it was


class Process(NamedTuple):
    """What Linux says of a process."""

    pid: int
    parent: int
    session: int
    command: bytes


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


def wait_until(reached: Callable[[], object], said: str) -> None:
    """Look again and again; `said` is what is waited for."""
    end = time.monotonic() + HANG
    while not reached():
        assert time.monotonic() < end, f"for {HANG} s not: {said}"
        time.sleep(0.01)


def living() -> Iterator[Process]:
    """All processes of this machine but the dead ones that nobody has waited for."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state not in "ZX":
                yield Process(int(folder.name), int(parent), int(session), (folder / "cmdline").read_bytes())


def children(module: str) -> list[int]:
    """Living processes that this one started as `python -m MODULE`."""
    return [each.pid for each in living() if each.parent == os.getpid() and module.encode() in each.command]


def kill(process: int) -> None:
    """Kill it, if it has not ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _is_over(session: int) -> bool:
    return all(each.session != session for each in living())


def finish_under_kills(
    arguments: list[str], kills: int, between: tuple[float, float], done: tuple[int, ...] = (0,)
) -> None:
    """The command, killed so many times after random seconds, then left alone to end with one of `done`.

    The processes that a killed one started are waited for: they have to end by themselves.
    """
    command = [sys.executable, "-c", "from itmfeat.cli import main; main()", *arguments]
    seconds, silent = random.Random(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(kills):
        process = subprocess.Popen(command, start_new_session=True, **silent)
        try:
            process.wait(seconds.uniform(*between))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_until(partial(_is_over, process.pid), "the processes of a killed command end")
        else:
            break
    last = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)
    assert last.returncode in done, last.stderr
