"""Loggers that people use, fed from run folders: TensorBoard, Weights & Biases, MLflow, trackio.

    metrics.jsonl, results.json --points--> what the logger lacks --writer--> logger

Training knows none of them. A further logger is a module `to_NAME.py` with a `Writer`, its line in `WRITERS`
and an extra of its name in pyproject.toml.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from itmfeat.errors import ItmfeatError, MissingPackageError, Note, reason_of, unknown
from itmfeat.loggers.points import send
from itmfeat.loggers.to_mlflow import MLflow
from itmfeat.loggers.to_tensorboard import TensorBoard
from itmfeat.loggers.to_trackio import Trackio
from itmfeat.loggers.to_wandb import WandB
from itmfeat.loggers.writer import Writer
from itmfeat.report.collect import flat
from itmfeat.runs import open_run

__all__ = ["WRITERS", "Stream", "Writer", "export", "named"]

WRITERS: dict[str, Callable[[Path, dict[str, Any]], Writer]] = {  # by the name of the package, too
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def named(text: str) -> list[str]:
    """The loggers of a list such as "tensorboard,wandb", each known and installed."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in WRITERS:
            raise unknown("logger", name, list(WRITERS))
        if find_spec(name) is None:
            raise MissingPackageError(f"{name} is not installed: pip install 'itmfeat[{name}]'")
    return names


def export(run: Path, name: str) -> int:
    """Send what a logger lacks of a finished or unfinished run; returns how many points that were."""
    try:
        with closing(_open(run, name)) as writer:
            return send(run, writer)
    except ItmfeatError:
        raise
    except Exception as error:  # each library has its own errors, and those of its network
        raise ItmfeatError(f"{name} took nothing of {run}: {_reason(error)}") from error


def _open(run: Path, name: str) -> Writer:
    config = flat(open_run(run).read("config.json"))
    try:
        return WRITERS[name](run, config)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{name} needs {error.name}: pip install 'itmfeat[{name}]'") from error


def _reason(error: Exception) -> str:
    """The first line of what a library says, of a length that can be read."""
    return reason_of(error)[:300]


class Stream:
    """Sends the epochs of running trainings as they come.

    A logger that fails is told once and left alone from there on: a training is worth more than its curves,
    and `itmfeat log` sends later what is missing.
    """

    def __init__(self, names: Sequence[str], note: Note) -> None:
        self._names, self._note = list(names), note
        self._open: dict[tuple[str, Path], Writer] = {}

    def __call__(self, run: Path) -> None:
        """Send what is new of a run."""
        for name in list(self._names):
            try:
                if (name, run) not in self._open:
                    self._open[name, run] = _open(run, name)
                send(run, self._open[name, run])
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        if name in self._names:
            self._names.remove(name)
            self._note(
                f"{name} failed, and training goes on without it ({_reason(error)}); "
                f"`itmfeat log RUN --to {name}` sends what is missing"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for (name, _), writer in self._open.items():
            try:
                writer.close()
            except Exception as failed:
                self._give_up(name, failed)
