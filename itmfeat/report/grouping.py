"""Runs to tables: grouping, the mean over seeds, and the marks of the best."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from itmfeat.errors import DataError
from itmfeat.report.collect import Run
from itmfeat.report.names import names_of
from itmfeat.report.notes import notes_of
from itmfeat.report.published import Published
from itmfeat.report.table import Cell, Row, Table, percent


def tabulate(runs: Iterable[Run], published: Iterable[Published] = ()) -> list[Table]:
    """A table for each dataset, split, protocol and noise protocol among the runs.

    Published rows join the tables of the same dataset, protocol, noise protocol and ratio, in their own order
    in front of ours; they take no part in best and second, which compare what was run under equal conditions.
    """
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        results = run.results
        dataset = str(run.config.get("dataset", "unknown"))
        key = (dataset, results.protocol, results.split, run.noise_protocol)
        groups.setdefault(key, []).append(run)
    if not groups:
        raise DataError("none of the runs is finished, so there is nothing to tabulate yet")
    given = list(published)
    return [_table(key, groups[key], given) for key in sorted(groups)]


def unplaced(published: Iterable[Published], tables: Iterable[Table]) -> list[str]:
    """A sentence for each kind of published row that is in no table."""
    placed = {row.published for table in tables for row in table.rows}
    left: dict[tuple[Path, str], list[Published]] = {}
    for row in published:
        if row not in placed:
            left.setdefault((row.file, row.setting), []).append(row)
    return [_sentence(file, setting, rows) for (file, setting), rows in left.items()]


def _sentence(file: Path, setting: str, rows: list[Published]) -> str:
    ratios = ", ".join(percent(ratio) for ratio in sorted({row.noise for row in rows}))
    lines = "line" if len(rows) == 1 else f"{len(rows)} lines, the first"
    return (
        f"not in a table, for there is no run to stand beside: {lines} {rows[0].line} of {file} "
        f"({setting} at {ratios} %)"
    )


def _table(key: tuple[str, str, str, str], runs: list[Run], published: list[Published]) -> Table:
    """The table of one group."""
    names = names_of(runs)
    rows: dict[tuple[float, str], list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        rows.setdefault((run.noise_ratio, name), []).append(run)
    ours = [_row(noise, name, rows[noise, name]) for noise, name in sorted(rows)]
    table = []
    for noise, block in groupby(ours, key=lambda row: row.noise):
        table += [_published(row) for row in published if row.belongs(key, noise)]
        table += _marked(list(block))
    dataset, protocol, split, noise_protocol = key
    return Table(dataset, protocol, split, noise_protocol, tuple(table), tuple(notes_of(table)))


def _row(noise: float, method: str, runs: list[Run]) -> Row:
    """Mean and deviation of each metric over the runs of a row."""
    runs = sorted(runs, key=lambda run: (run.seed or 0, run.path))
    columns = zip(*(run.results.metrics for run in runs), strict=True)
    cells = [Cell(fmean(values), stdev(values) if len(runs) > 1 else None) for values in columns]
    return Row(noise, method, tuple(cells), tuple(runs))


def _published(row: Published) -> Row:
    cells = tuple(Cell(value, None) for value in row.metrics)
    return Row(row.noise, row.method, cells, (), row)


def _marked(rows: list[Row]) -> list[Row]:
    """The rows of one block with the best and the second of each column marked, unless alone."""
    if len(rows) < 2:
        return rows
    columns = []
    for column in zip(*(row.cells for row in rows), strict=True):
        best = sorted({cell.mean for cell in column}, reverse=True)[:2]
        places = {mean: place for place, mean in enumerate(best, start=1)}
        columns.append([replace(cell, place=places.get(cell.mean, 0)) for cell in column])
    return [replace(row, cells=cells) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]
