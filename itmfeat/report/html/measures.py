"""What charts draw: the records of tables and of the logs of their runs, means over seeds.

Each function gives a flat list of records. `table` is a position among the tables, `noise` a percentage;
`low` and `high` are the mean less and plus one standard deviation, and equal to it for a single run.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from itmfeat.errors import DataError
from itmfeat.noise.separation import BINS, LOWEST
from itmfeat.report.table import METRICS, Row, Table

Record = dict[str, Any]


def methods(tables: Sequence[Table]) -> list[str]:
    """All methods of all tables, ours first: the place of one is its colour, its dashes and its mark."""
    found = {(row.published is not None, row.label) for table in tables for row in table.rows}
    return [name for _, name in sorted(found)]


def ratios(tables: Sequence[Table]) -> list[float]:
    """All noise ratios in percent, ascending."""
    return sorted({_percent(row) for table in tables for row in table.rows})


def scores(tables: Sequence[Table]) -> list[Record]:
    """The six recalls and rSum of each row, published ones included."""
    return [
        head | {"metric": metric, "runs": len(row.runs)} | band(cell.mean, cell.std or 0.0)
        for head, row in _rows(tables)
        for metric, cell in zip(METRICS, row.cells, strict=True)
    ]


def epochs(tables: Sequence[Table]) -> list[Record]:
    """Validation rSum, loss and AUC (of telling clean from noisy pairs) after each epoch of each row."""
    found = []
    for head, row in _rows(tables):
        values: dict[tuple[str, int], list[float]] = {}
        for run in row.runs:
            for measure, epoch, value in _logged(run.path):
                values.setdefault((measure, epoch), []).append(value)
        for (measure, epoch), several in sorted(values.items()):
            found.append(head | {"measure": measure, "epoch": epoch} | spread(several))
    return found


def matches(tables: Sequence[Table]) -> list[Record]:
    """The share of a noisy row's clean and of its noisy pairs in each bin, `match` to `end`, of the match."""
    found = []
    edges = [10.0 ** (LOWEST * (1 - place / BINS)) for place in range(BINS + 1)]
    for head, row in _rows(tables):
        for kind in ("clean", "noisy") if row.noise else ():
            shares = _shares([run.manifest.match.get(kind, []) for run in row.runs])
            found += [
                head | {"pairs": kind, "match": low, "end": high, "share": share}
                for (low, high), share in zip(pairwise(edges), shares, strict=False)
            ]
    return found


def _shares(histograms: list[list[int]]) -> list[float]:
    """The mean over runs of the share of each bin; empty where none was recorded."""
    filled = [counts for counts in histograms if len(counts) == BINS and sum(counts) > 0]
    shares = ([count / sum(counts) for count in counts] for counts in filled)
    return [round(fmean(several), 5) for several in zip(*shares, strict=True)]


def costs(tables: Sequence[Table]) -> list[Record]:
    """Seconds of training that a run of each method took: its share, where it trained in a stack."""
    found = []
    for place, table in enumerate(tables):
        seconds: dict[str, list[float]] = {}
        for run, method in ((run, row.label) for row in table.rows for run in row.runs):
            if "train" in run.manifest.seconds:
                share = run.manifest.seconds["train"] / run.manifest.stack
                seconds.setdefault(method, []).append(share)
        found += [{"table": place, "method": name} | spread(of) for name, of in sorted(seconds.items())]
    return found


def stacks(tables: Sequence[Table]) -> list[int]:
    """How many runs trained side by side with each run, each number once."""
    return sorted({run.manifest.stack for table in tables for row in table.rows for run in row.runs})


def spread(values: Sequence[float]) -> Record:
    """The band of values of as many runs."""
    return {"runs": len(values)} | band(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def band(mean: float, deviation: float) -> Record:
    """Mean, standard deviation, and the mean less and plus it."""
    numbers = {"mean": mean, "std": deviation, "low": mean - deviation, "high": mean + deviation}
    return {name: round(value, 4) for name, value in numbers.items()}


def _rows(tables: Sequence[Table]) -> Iterator[tuple[Record, Row]]:
    """Each row of each table, with what all its records say."""
    for place, table in enumerate(tables):
        for row in table.rows:
            yield {"table": place, "method": row.label, "noise": _percent(row)}, row


def _percent(row: Row) -> float:
    return round(100 * row.noise, 3)


@cache
def _logged(path: Path) -> tuple[tuple[str, int, float], ...]:
    """Measure, epoch and value, from the log of a run; a value that was no number is left out."""
    from itmfeat.runs import Run

    try:
        entries = Run(path).metrics()
        return tuple(_values(entries))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        file = path / "metrics.jsonl"
        raise DataError(f"{file} is damaged: leave this run out, or train it again") from error


def _values(entries: Iterable[Record]) -> Iterator[tuple[str, int, float]]:
    for entry in entries:
        told = {
            "rsum": entry["val"]["rsum"],
            "loss": entry["loss"],
            "auc": entry.get("separation", {}).get("auc"),
        }
        for measure, value in told.items():
            if value is not None:
                yield measure, int(entry["epoch"]), float(value)
