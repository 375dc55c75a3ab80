"""Tables for a terminal."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from itmfeat.report.table import HEADINGS, Cell, Row, Table, percent

STYLES = ("", "bold", "underline")  # by place


def text(tables: Sequence[Table], width: int = 120) -> str:
    """The tables without colour, so many columns wide."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(renderable(tables))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def renderable(tables: Sequence[Table]) -> Group:
    """What a rich console prints, in its own width; bold is best, underlined second."""
    parts: list[Text | _Grid] = []
    for table in tables:
        notes = Text("\n".join(table.notes), style="dim")
        parts += [Text(table.title, style="bold"), _Grid(table), notes, Text()]
    return Group(*parts[:-1])


@dataclass
class _Grid:
    """The rows of a table: on one line each where there is room, else deviations below the means."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = _grid(self.table, narrow=False)
        needed = Measurement.get(console, options.update(max_width=10_000), wide).maximum
        yield wide if needed <= options.max_width else _grid(self.table, narrow=True)


def _grid(table: Table, narrow: bool) -> RichTable:
    """The rows, in sections of equal noise. Only the method may break, so that no number is lost."""
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 0 if narrow else 1, 0, 0), pad_edge=False)
    grid.add_column("noise\n%", justify="right", no_wrap=True)
    grid.add_column("\nmethod", overflow="fold")
    for way, what in HEADINGS:
        grid.add_column(f"{way}\n{what}", justify="right", no_wrap=True)
    if table.repeated:
        grid.add_column("\nseeds", justify="right", no_wrap=True)
    for block in table.blocks:
        for first, row in enumerate(block):
            noise = "" if first else percent(row.noise)
            grid.add_row(Text(noise), Text(row.label), *_cells(row, narrow, table.repeated))
        grid.add_section()
    return grid


def _cells(row: Row, narrow: bool, repeated: bool) -> list[Text]:
    """The numbers of one row, with how many seeds they are the mean of."""
    cells = [_cell(cell, narrow) for cell in row.cells]
    return [*cells, Text(row.seeds)] if repeated else cells


def _cell(cell: Cell, narrow: bool) -> Text:
    return Text(cell.text.replace(" ", "\n") if narrow else cell.text, style=STYLES[cell.place])
