"""Find run folders and read them. Nothing is left out in silence: runs without results are named."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from itmfeat.config import label
from itmfeat.errors import DataError

DEPTH = 2  # levels of folders below a given path that may hold runs


class Recalls(BaseModel):
    """One direction, in percent."""

    r1: float
    r5: float
    r10: float


class Results(BaseModel):
    """What a run scored under one protocol; COCO 5K results hold the five-fold 1K ones as well."""

    protocol: str
    split: str
    images: int
    captions: int
    i2t: Recalls
    t2i: Recalls
    folds: "Results | None" = Field(None, alias="5x1k")

    @property
    def metrics(self) -> tuple[float, ...]:
        """The six recalls and their sum, in the order of `table.METRICS`."""
        recalls = [value for way in (self.i2t, self.t2i) for value in (way.r1, way.r5, way.r10)]
        return (*recalls, math.fsum(recalls))


class NoiseFacts(BaseModel):
    """The noise that a run saw, as its manifest has it."""

    digest: str | None = None
    effective: float | None = None


class SelectionFacts(BaseModel):
    """How the epoch was chosen."""

    split: str | None = None


class Manifest(BaseModel):
    """The parts of a manifest that a report tells."""

    noise: NoiseFacts = NoiseFacts()
    selection: SelectionFacts = SelectionFacts()
    cache: str | None = None
    stack: int = Field(1, ge=1)
    seconds: dict[str, float] = {}
    match: dict[str, list[int]] = {}  # how many clean and noisy pairs matched how well
    diverged: int | None = None  # the epoch in which the loss stopped being a number


@dataclass(frozen=True)
class Run:
    """A finished run under one protocol. `config` is flat: "loss.name", "head.dim", "seed"."""

    path: Path
    config: dict[str, Any]
    manifest: Manifest
    results: Results

    @property
    def seed(self) -> int | None:
        """The seed of the heads."""
        return self.config.get("seed")

    @property
    def loss(self) -> str:
        """The name of the loss, and of the method of robust training."""
        return label(
            str(self.config.get("loss.name", "unknown")), str(self.config.get("robust.name", "none"))
        )

    @property
    def noise_protocol(self) -> str:
        """How the noise was drawn; "file" where an index file stands in for a protocol."""
        return "file" if self.config.get("noise.file") else str(self.config.get("noise.protocol"))

    @cached_property
    def nets(self) -> int | None:
        """How many nets the similarities are the mean of, as the file of the heads has it."""
        try:
            with (self.path / "head.safetensors").open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return int(header["image.linear.bias"]["shape"][0])  # a first axis over nets
        except (OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError):
            return None  # without its heads a run has results all the same

    @cached_property
    def noise_ratio(self) -> float:
        """The share of noisy captions that was asked for, or that the index file has."""
        if self.noise_protocol == "file":
            return round(self.manifest.noise.effective or 0.0, 3)
        return float(self.config.get("noise.ratio", 0.0))


@dataclass(frozen=True)
class Collected:
    """Finished runs, once for each protocol they hold, and the folders of those without results."""

    runs: list[Run]
    unfinished: list[Path]
    diverged: list[Path]

    @property
    def note(self) -> str | None:
        """A sentence for stderr about what is not in the tables."""
        reasons = {
            "unfinished (repeat the command to resume)": self.unfinished,
            "diverged (the loss is no number any more; try a lower learning rate)": self.diverged,
        }
        told = [
            f"because {reason}: {', '.join(map(str, paths))}" for reason, paths in reasons.items() if paths
        ]
        return f"not in the table, {'; '.join(told)}" if told else None


def collect(paths: Iterable[str | Path]) -> Collected:
    """Read each of `paths`: a run folder, or a folder with runs up to two levels below."""
    folders = run_folders(paths)
    finished = [path for path in folders if (path / "results.json").exists()]
    left = [path for path in folders if not (path / "results.json").exists()]
    diverged = [path for path in left if _manifest(path).diverged]
    unfinished = [path for path in left if path not in diverged]
    return Collected([run for path in finished for run in _read(path)], unfinished, diverged)


def run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among `paths` and up to two levels below them, each once."""
    folders: dict[Path, Path] = {}  # by resolved path, so that no run counts twice
    for given in paths:
        path = Path(given)
        found = sorted(_run_folders(path, DEPTH))
        if not found:
            raise DataError(f"there is no run in {path}: `itmfeat train` makes them")
        folders |= {folder.resolve(): folder for folder in found}
    return list(folders.values())


def _run_folders(path: Path, depth: int) -> Iterator[Path]:
    """`path` itself if it is a run, else the runs below it."""
    if (path / "config.json").exists() or (path / "results.json").exists():
        yield path
    elif depth and path.is_dir():
        for child in path.iterdir():
            yield from _run_folders(child, depth - 1)


def _read(path: Path) -> Iterator[Run]:
    """A finished run, once for each protocol in its results."""
    config = flat(_load(path / "config.json", dict[str, Any]))
    manifest = _manifest(path)
    results: Results | None = _load(path / "results.json", Results)
    while results is not None:
        yield Run(path, config, manifest, results)
        results = results.folds


def _manifest(path: Path) -> Manifest:
    """The manifest of a run; an empty one before it is written."""
    file = path / "manifest.json"
    return _load(file, Manifest) if file.exists() else Manifest()


Read = TypeVar("Read")


def _load(file: Path, kind: type[Read]) -> Read:
    """A JSON file of a run, checked against what a report needs of it."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} is missing, so {file.parent} is no complete run") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise DataError(f"{file} is damaged or no file of a run ({reason})") from None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, but those of the section "data" as if they stood outside it."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, "" if prefix + key == "data" else f"{prefix}{key}.")
        else:
            # Lists become text, so that every value can be compared and hashed.
            found[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return found
