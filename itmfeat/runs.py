"""A run is a folder: what was asked, what happened, what came out. No pickle, nothing outside it.

config.json               the complete configuration; its digest names the folder
manifest.json             versions, device, digests, arguments, times
metrics.jsonl             a line an epoch
checkpoint-NNN...         where to go on after epoch NNN; gone when the run is finished
head.safetensors          the heads of the best validation epoch
ranks.safetensors         the rank of each test query, in both directions (`itmfeat.retrieval.kept`)
retrieved.safetensors     the ten best hits of each test query, in both directions, by FAISS
results.json              the test metrics; written last, so it marks a finished run
"""

import errno
import json
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from itmfeat.config import RunConfig
from itmfeat.errors import DataError, ItmfeatError, disk_full
from itmfeat.locks import lock_file


def make_place(runs: Path) -> None:
    """Make the folder that run folders go into; an ItmfeatError if nothing can be written there."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        if not os.access(runs, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ItmfeatError(
            f"no run folder can be made in {runs} ({error.strerror}); name another place with --runs"
        ) from None


class Run:
    """One run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        """Whether the results are there; they are written last."""
        return (self.path / "results.json").exists()

    def start(self, config: RunConfig) -> None:
        """Make the folder, or take up an unfinished run of the very same configuration."""
        wanted = config.model_dump(mode="json")
        if not (self.path / "config.json").exists():
            if self.path.exists() and not self._empty():
                raise DataError(f"{self.path} exists and is no run; move it or choose another --runs folder")
            make_place(self.path.parent)
            self.path.mkdir(exist_ok=True)
            self._create("config.json", wanted)
        if self.read("config.json") != wanted:
            raise DataError(f"{self.path} exists and holds another run; choose another --runs folder")

    def _empty(self) -> bool:
        """Whether the folder holds nothing, or only what a start leaves: one that was killed, or goes on."""
        names = re.compile(r"config\.json(\..*part)?")
        return self.path.is_dir() and all(names.fullmatch(file.name) for file in self.path.iterdir())

    def _create(self, name: str, value: Any) -> None:
        """Write a JSON file unless it is there: a process that locks the file must not lose it to another."""
        part = self.path / f"{name}.{uuid.uuid4().hex}.part"
        self._fill(part, _json(value))
        try:
            with suppress(FileExistsError):  # another process was faster
                os.link(part, self.path / name)
        except OSError:  # a file system without links
            os.replace(part, self.path / name)
        part.unlink(missing_ok=True)

    def read(self, name: str) -> Any:
        """A JSON file of the run."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} is missing or damaged; is this a run folder?") from error

    def config(self) -> RunConfig:
        """The configuration of an existing run."""
        try:
            return RunConfig.model_validate(self.read("config.json"))
        except ValueError as error:
            raise DataError(f"{self.path / 'config.json'} is no configuration of this version") from error

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self._put(self.path / name, _json(value))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a safetensors file."""
        whole = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        self._put(self.path / name, save(whole))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """A safetensors file of the run."""
        try:
            return load((self.path / name).read_bytes())
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.path / name} is missing or damaged; delete {self.path} and train again"
            ) from error

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file in one step: a kill or a full disk leaves the old one or the new one."""
        part = path.with_name(f"{path.name}.part")
        self._fill(part, content)
        os.replace(part, path)

    def _fill(self, part: Path, content: bytes) -> None:
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_full(error, self.path, ", it goes on from the last checkpoint") or error from None

    def log(self, epoch: int, entry: dict[str, Any]) -> None:
        """Append the line of an epoch; lines of this and later epochs (of a killed attempt) go first."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self._put(path, "".join(f"{line}\n" for line in [*lines[:epoch], json.dumps(entry)]).encode())

    def lock(self) -> int:
        """Keep other processes from training the same run; closing the returned descriptor ends it."""
        return lock_file(self.path / "config.json", os.O_RDONLY, f"{self.path} is being trained")

    def tidy(self) -> None:
        """Remove what a finished run needs no more, and what a kill left half written."""
        for file in (*self.checkpoints().values(), *self.path.glob("*.part")):
            file.unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """All epochs logged so far."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def checkpoints(self) -> dict[int, Path]:
        """Finished epochs -> checkpoint files."""
        found = {}
        for file in self.path.glob("checkpoint-*.safetensors"):
            if number := re.fullmatch(r"checkpoint-(\d+)\.safetensors", file.name):
                found[int(number[1])] = file
        return found

    def checkpoint(self, epochs: int) -> str:
        """The name of the checkpoint after so many finished epochs."""
        return f"checkpoint-{epochs:03d}.safetensors"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def open_run(path: Path) -> Run:
    """An existing run folder."""
    if not (path / "config.json").exists():
        raise DataError(f"{path} is no run folder: it has no config.json")
    return Run(path)
