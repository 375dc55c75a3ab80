"""Runs to tables: grouping, the mean over seeds, the marks of the best, and the footnotes."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from itmfeat.errors import DataError
from itmfeat.report.collect import Run

METRICS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
# The same for people: which way, and what.
HEADINGS = (
    ("i2t", "R@1"),
    ("i2t", "R@5"),
    ("i2t", "R@10"),
    ("t2i", "R@1"),
    ("t2i", "R@5"),
    ("t2i", "R@10"),
    ("", "rSum"),
)
DIGEST = 12  # hexadecimal digits of a digest that a person is shown


@dataclass(frozen=True)
class Cell:
    """One number: its mean, its standard deviation over more than one run, and its place.

    `place` is 1 for the best of a noise block, 2 for the second, 0 for others.
    """

    mean: float
    std: float | None
    place: int = 0

    @property
    def text(self) -> str:
        """With one decimal."""
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ±{self.std:.1f}"


@dataclass(frozen=True)
class Row:
    """One method at one noise ratio, over its seeds; `cells` in the order of `METRICS`."""

    noise: float
    method: str
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one dataset, split and protocol, one way to draw noise."""

    dataset: str
    protocol: str
    split: str
    noise_protocol: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the table is about."""
        noise = f"{self.noise_protocol} noise" if any(row.noise for row in self.rows) else "no noise"
        return f"{self.dataset}, {self.split} split, protocol {self.protocol}, {noise}"

    @property
    def blocks(self) -> list[tuple[Row, ...]]:
        """The rows of each noise ratio."""
        return [tuple(rows) for _, rows in groupby(self.rows, key=lambda row: row.noise)]

    @property
    def repeated(self) -> bool:
        """Whether any row has more than one run."""
        return any(len(row.runs) > 1 for row in self.rows)


def percent(ratio: float) -> str:
    """A noise ratio as people write it."""
    return f"{100 * ratio:g}"


def tabulate(runs: Iterable[Run]) -> list[Table]:
    """A table for each dataset, split, protocol and noise protocol among the runs."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        results = run.results
        dataset = str(run.config.get("dataset", "unknown"))
        key = (dataset, results.protocol, results.split, run.noise_protocol)
        groups.setdefault(key, []).append(run)
    if not groups:
        raise DataError("none of the runs is finished, so there is nothing to tabulate yet")
    _share_clean(groups)
    return [_table(key, groups[key]) for key in sorted(groups)]


def _share_clean(groups: dict[tuple[str, ...], list[Run]]) -> None:
    """Show a run without noise in the tables of all protocols that lack it: to it they are the same."""

    def alike(run: Run) -> frozenset[tuple[str, Any]]:
        return frozenset((key, value) for key, value in run.config.items() if not key.startswith("noise."))

    clean = {key: [run for run in runs if not run.noise_ratio] for key, runs in groups.items()}
    for key, runs in groups.items():
        if key[-1] == "file":
            continue
        there = {alike(run) for run in clean[key]}
        for other, found in clean.items():
            if other[:-1] == key[:-1] and other[-1] not in ("file", key[-1]):
                new = [run for run in found if alike(run) not in there]
                runs.extend(new)
                there |= {alike(run) for run in new}


def _table(key: tuple[str, ...], runs: list[Run]) -> Table:
    """The table of one group."""
    names = _names(runs)
    rows: dict[tuple[float, str], list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        rows.setdefault((run.noise_ratio, name), []).append(run)
    table = [_row(noise, name, rows[noise, name]) for noise, name in sorted(rows)]
    blocks = groupby(table, key=lambda row: row.noise)
    marked = [row for _, block in blocks for row in _marked(list(block))]
    dataset, protocol, split, noise_protocol = key
    return Table(dataset, protocol, split, noise_protocol, tuple(marked), tuple(_notes(marked)))


def _row(noise: float, method: str, runs: list[Run]) -> Row:
    """Mean and deviation of each metric over the runs of a row."""
    runs = sorted(runs, key=lambda run: (run.seed or 0, run.path))
    columns = zip(*(run.results.metrics for run in runs), strict=True)
    cells = [Cell(fmean(values), stdev(values) if len(runs) > 1 else None) for values in columns]
    return Row(noise, method, tuple(cells), tuple(runs))


def _marked(rows: list[Row]) -> list[Row]:
    """The rows of one block with the best and the second of each column marked, unless alone."""
    if len(rows) < 2:
        return rows
    columns = []
    for column in zip(*(row.cells for row in rows), strict=True):
        best = sorted({cell.mean for cell in column}, reverse=True)[:2]
        places = {mean: place for place, mean in enumerate(best, start=1)}
        columns.append([Cell(cell.mean, cell.std, places.get(cell.mean, 0)) for cell in column])
    return [
        Row(row.noise, row.method, cells, row.runs)
        for row, cells in zip(rows, zip(*columns, strict=True), strict=True)
    ]


# --- what a row is called ---


def _names(runs: list[Run]) -> list[str]:
    """The loss of each run, with the fewest settings that tell it from other rows.

    Without them, runs of different settings would be averaged as if they were seeds of one.
    """
    general = _telling(
        runs, [key for key in _keys(runs) if not key.startswith(("loss.", "robust.", "schedule."))]
    )
    special = {}
    for loss in {run.loss for run in runs}:
        same = [run for run in runs if run.loss == loss]
        special[loss] = _telling(same, _keys(same), general)
    names = []
    for run in runs:
        told = [_setting(key, run.config.get(key)) for key in special[run.loss]]
        names.append(f"{run.loss} ({', '.join(told)})" if told else run.loss)
    return names


def _keys(runs: list[Run]) -> list[str]:
    """Keys that may make a method: neither where nor with which noise and seed it was run."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in sorted(keys, key=lambda key: (not key.endswith(("backbone", ".name")), key))
        if key not in ("dataset", "seed", "loss.name", "robust.name") and not key.startswith("noise.")
    ]


def _telling(runs: list[Run], keys: Sequence[str], told: Sequence[str] = ()) -> list[str]:
    """`told` and those of `keys` that tell runs apart which the keys before could not."""
    chosen = list(told)
    kinds = _kinds(runs, chosen)
    for key in keys:
        more = _kinds(runs, [*chosen, key])
        if more > kinds:
            chosen, kinds = [*chosen, key], more
    return chosen


def _kinds(runs: list[Run], keys: Sequence[str]) -> int:
    """How many kinds of runs there are if only `keys` are looked at."""
    return len({tuple(json.dumps(run.config.get(key)) for key in keys) for run in runs})


def _setting(key: str, value: Any) -> str:
    """A setting in a name: backbones and presets speak for themselves, other keys are named."""
    if key.endswith("digest"):
        value = str(value)[:DIGEST]
    if key.endswith(("backbone", ".name")):
        return str(value)
    return f"{key.rpartition('.')[2]}={value}"


# --- footnotes ---


def _notes(rows: list[Row]) -> list[str]:
    """What a reader has to know before comparing the rows with a paper."""
    runs = [run for row in rows for run in row.runs]
    return [*_noise_notes(rows), *_seed_notes(rows), _model_note(runs), _size_note(runs)]


def _noise_notes(rows: list[Row]) -> list[str]:
    """Protocol, seed, and each ratio's effective rate and digest; a warning where draws differ."""
    draws: dict[float, dict[str, str]] = {}
    seeds = set()
    for row in rows:
        for run in row.runs:
            if row.noise:
                seeds.add(run.config.get("noise.seed"))
                digest, effective = run.manifest.noise.digest, run.manifest.noise.effective
                rate = "" if effective is None else f" (effective {100 * effective:.2f} %)"
                text = f"digest {digest[:DIGEST]}{rate}" if digest else "digest not recorded"
                draws.setdefault(row.noise, {})[str(digest)] = text
    if not draws:
        return ["Noise: none."]
    protocol = next(run.noise_protocol for row in rows if row.noise for run in row.runs)
    source = protocol if protocol == "file" else f"{protocol}, {_listed('seed', seeds)}"
    each = [f"{percent(ratio)} %: {' and '.join(texts.values())}" for ratio, texts in draws.items()]
    mixed = [percent(ratio) for ratio, texts in draws.items() if len(texts) > 1]
    notes = [f"Noise: {source}; {'; '.join(each)}."]
    if mixed:
        notes.append(f"Runs at {', '.join(mixed)} % saw different noise: compare them with care.")
    return notes


def _seed_notes(rows: list[Row]) -> list[str]:
    """Which seeds, and every row that counts a seed twice or lacks one that another row has."""
    runs = [run for row in rows for run in row.runs]
    seeds = {run.seed for run in runs}
    listed = _listed("seed", seeds)
    several = any(len(row.runs) > 1 for row in rows)
    notes = [
        f"Mean ± standard deviation over {listed} of the heads." if several else f"{listed.capitalize()}."
    ]
    for row in rows:
        label = f"{row.method} at {percent(row.noise)} %"
        drawn = Counter((run.seed, run.config.get("noise.seed")) for run in row.runs)
        notes += [f"{label} counts seed {seed} {n} times." for (seed, _), n in drawn.items() if n > 1]
        missing = seeds - {run.seed for run in row.runs}
        if missing:
            notes.append(f"{label} lacks {_listed('seed', missing)}.")
    return notes


def _model_note(runs: list[Run]) -> str:
    """Selection, backbones and head; "see rows" where they differ."""
    splits = sorted({run.manifest.selection.split or "unrecorded" for run in runs})
    image = _shared({str(run.config.get("image_backbone")) for run in runs})
    text = _shared({str(run.config.get("text_backbone")) for run in runs})
    head = _shared({head_of(run) for run in runs})
    selection = f"Single model, epoch selected on the {' and '.join(splits)} split"
    return f"{selection}; image backbone {image}, text backbone {text}; head {head}."


def _size_note(runs: list[Run]) -> str:
    """How many images and captions were ranked, and how rSum is made."""
    sizes = sorted({(run.results.images, run.results.captions) for run in runs})
    listed = " or ".join(f"{images} images and {captions} captions" for images, captions in sizes)
    return f"Ranked: {listed}. rSum is the sum of the six recalls before rounding."


def head_of(run: Run) -> str:
    """The head in words: its name, or its settings."""
    settings = {key[5:]: value for key, value in run.config.items() if key.startswith("head.")}
    name = settings.pop("name", None)
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name} ({told})" if name and told else str(name or told or "not recorded")


def _shared(values: set[str]) -> str:
    """The one value, or where to look."""
    return values.pop() if len(values) == 1 else "as in the rows"


def _listed(what: str, values: set[Any]) -> str:
    """ "seed 0", or "seeds 0, 1"."""
    names = [str(value) for value in sorted(values, key=lambda value: (value is None, value))]
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"
