"""Functions and commands in processes of their own, forked from this one, that may kill themselves."""

import os
import resource
import select
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from itmfeat.cli import main as itmfeat


@dataclass(frozen=True)
class End:
    """How a child ended."""

    code: int  # exit code, or the signal as a negative number
    out: str
    err: str

    def sentence(self, code: int) -> str:
        """The one error that a command ended with."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == code, self
        assert len(errors) == 1, self
        assert "Traceback" not in self.err, self
        return errors[0]


class Child:
    """A function in a process of its own, its output in files."""

    def __init__(self, function: Callable[[], object], memory: int = 0) -> None:
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `wait`)
        self._err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.pid = os.fork()
        if not self.pid:
            self._run(function, memory)
        self._handle = os.pidfd_open(self.pid)

    def _run(self, function: Callable[[], object], memory: int) -> None:
        """In the child: never returns."""
        code = 70
        try:
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            try:
                function()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def ended(self, seconds: float) -> bool:
        """Wait so long at most; whether it has ended."""
        return bool(select.select([self._handle], [], [], seconds)[0])

    def wait(self, seconds: float = 300) -> End:
        """Its end; it is killed after so many seconds, which reads as code -9."""
        if not self.ended(seconds):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read())
            file.close()
        return End(os.waitstatus_to_exitcode(status), *texts)


def command(*arguments: object, before: Callable[[], object] = lambda: None, memory: int = 0) -> Child:
    """An itmfeat command in a child."""

    def run() -> None:
        before()
        sys.argv = ["itmfeat", *map(str, arguments)]
        itmfeat()

    return Child(run, memory)


def die_at(call: str, count: int) -> Callable[[], None]:
    """Makes a process kill itself just before the count-th use of a system call."""

    def plan() -> None:
        plain, left = getattr(os, call), count

        def counted(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **options)

        setattr(os, call, counted)

    return plan
