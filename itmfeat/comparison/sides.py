"""The two sides of a comparison: their runs, further seeds beside them, and what cannot be compared."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmfeat.api import finished, rank_tensors
from itmfeat.errors import DataError, Note, UsageError, unknown
from itmfeat.pairs import Ints
from itmfeat.retrieval.protocols import PROTOCOLS, refusal
from itmfeat.retrieval.uncertainty import Floats
from itmfeat.runs import Run

PathLike = str | Path


@dataclass
class Side:
    """The runs of one configuration, with different seeds of the heads or of the order of batches."""

    runs: list[Run]  # compared
    beside: list[Run] = field(default_factory=list)  # further seeds, which only tell the scatter


def sides_of(
    a: PathLike | Sequence[PathLike], b: PathLike | Sequence[PathLike], all_seeds: bool
) -> tuple[Side, Side]:
    """Both sides, which share no run."""
    sides = (_side(a, all_seeds, "first"), _side(b, all_seeds, "second"))
    one = all_seeds and _setting(sides[0].runs[0]) == _setting(sides[1].runs[0])
    advice = "both are of one configuration, so leave out --all-seeds" if one else "name each run once"
    _refuse_twice([run for side in sides for run in side.runs], advice)
    return sides


def _side(given: PathLike | Sequence[PathLike], all_seeds: bool, name: str) -> Side:
    """The runs of a side, which must be of one configuration."""
    paths = [given] if isinstance(given, str | Path) else list(given)
    runs = [run for path in paths for run in _runs(Path(path))]
    if not runs:
        raise UsageError(f"the {name} side of the comparison holds no finished run")
    other = next((run for run in runs if _setting(run) != _setting(runs[0])), None)
    if other is not None:
        raise UsageError(
            f"{runs[0].path} and {other.path} stand on one side, but differ in more than their seeds; name "
            "the runs of one configuration on each side of `vs`"
        )
    found = Side(runs)
    if len(runs) == 1 or all_seeds:
        taken = {run.path for run in runs}
        beside = [run for run in _beside(runs[0]) if run.path not in taken]
        (found.runs if all_seeds else found.beside).extend(beside)
    return found


def _runs(path: Path) -> list[Run]:
    """A run folder, or the finished runs in a folder."""
    path = path.resolve()
    if (path / "config.json").exists():
        return [finished(path)]
    found = [Run(file.parent) for file in sorted(path.glob("*/config.json"))]
    if not found:
        raise DataError(f"{path} is no run folder and holds none")
    return [run for run in found if run.finished]


def _beside(run: Run) -> Iterator[Run]:
    """The other finished runs of the same configuration in the same folder."""
    for file in sorted(run.path.parent.glob("*/config.json")):
        other = Run(file.parent)
        with suppress(DataError):  # a neighbour that cannot be read is no seed of this run
            if other.finished and other.path != run.path and _setting(other) == _setting(run):
                other.read("results.json")  # is there, but may be damaged
                yield other


def _setting(run: Run) -> str:
    """The configuration without its seeds, as text."""
    config = run.config().model_dump(mode="json")
    del config["seed"], config["schedule"]["order_seed"]
    return json.dumps(config, sort_keys=True)


def ranks_of(
    sides: tuple[Side, Side], cache: PathLike | None, device: str, note: Note
) -> dict[Run, dict[str, Tensor]]:
    """The ranks of all runs; further seeds whose ranks are lost are left out."""
    ranks = {run: rank_tensors(run, cache, device, note) for side in sides for run in side.runs}
    known, lost = {run.path for run in ranks}, 0
    for side in sides:
        for run in side.beside:
            try:
                if run.path not in known:  # sides of one configuration have the same beside them
                    ranks[run] = rank_tensors(run, cache, device, note)
            except DataError:
                lost += 1
            known.add(run.path)
        side.beside = [run for run in side.beside if run.path in {other.path for other in ranks}]
    if lost:
        note(f"{lost} further seeds keep no ranks and are left out: pass --cache, or train them again")
    return ranks


def _refuse_twice(runs: list[Run], advice: str) -> None:
    """A run paired with itself, or counted as two seeds, would look certain."""
    seen: set[str] = set()
    for run in runs:
        digest = run.config().digest
        if digest in seen:
            raise UsageError(f"{run.path} stands twice in the comparison, or on both sides; {advice}")
        seen.add(digest)


def refuse_other_queries(ranks: dict[Run, dict[str, Tensor]]) -> None:
    """Only ranks of the very same queries can be paired."""
    runs = list(ranks)
    first, captions = runs[0].config().data, ranks[runs[0]]["captions"]
    for run in runs:
        data = run.config().data
        if data.dataset_digest != first.dataset_digest:
            raise DataError(
                f"{runs[0].path} and {run.path} were made on different datasets ({first.dataset}, "
                f"{data.dataset}, by their digests), so they cannot be compared"
            )
        if not torch.equal(ranks[run]["captions"], captions):
            raise DataError(
                f"{runs[0].path} and {run.path} rank different captions or images of {data.dataset} (see "
                "captions_per_image, and images without features), so they cannot be compared"
            )


def protocol_of(runs: list[Run], protocol: str) -> str:
    """What to compare under; "auto" is what the runs are labelled with.

    As in `eval`, a DataError for a named protocol where a run ranks other images or captions than papers.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    results = [run.read("results.json") for run in runs]
    odd = next((each for each in results if each.get("standard")), None)
    if odd and protocol not in ("auto", "full"):
        raise DataError(refusal(protocol, odd["split"], odd["standard"], odd["images"], odd["captions"]))
    return str((odd or results[0])["protocol"]) if odd or protocol == "auto" else protocol


def weights(sides: tuple[Side, Side], runs: list[Run]) -> tuple[Floats, Ints]:
    """What each run counts in A minus B, and the number of its configuration, both (R,)."""
    weight = np.zeros(len(runs))
    for side, sign in zip(sides, (1.0, -1.0), strict=True):
        for run in side.runs:
            weight[runs.index(run)] = sign / len(side.runs)
    settings = [_setting(run) for run in runs]
    return weight, np.array([settings.index(setting) for setting in settings])


def differing(a: Side, b: Side) -> dict[str, list[Any]]:
    """The keys of the configuration, seeds aside, that set the sides apart, with both values."""
    first, second = (_flat(json.loads(_setting(side.runs[0]))) for side in (a, b))
    found = {key: [first.get(key), second.get(key)] for key in (first | second)}
    found = {key: values for key, values in found.items() if values[0] != values[1]}
    for section in ("loss", "robust"):
        if f"{section}.name" in found:  # then their parameters differ as a matter of course
            found = {
                k: v for k, v in found.items() if k == f"{section}.name" or not k.startswith(f"{section}.")
            }
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def described(side: Side) -> dict[str, Any]:
    """The configuration and the runs of a side, for a reader."""
    config = side.runs[0].config()
    noise = "file" if config.noise.file else f"{config.noise.protocol} {config.noise.ratio:g}"
    return {
        "method": config.label,
        "noise": noise,
        "runs": [str(run.path) for run in side.runs],
        "seeds": [run.config().seed for run in side.runs],
        "seeds_beside": len(side.beside),
        "order_seeds": sorted({run.config().schedule.order_seed for run in (*side.runs, *side.beside)}),
    }
