"""Tables for a README or an issue."""

import re
from collections.abc import Sequence

from itmfeat.report.table import HEADINGS, Cell, Row, Table, percent

MARKS = ("{}", "**{}**", "<u>{}</u>")  # by place


def text(tables: Sequence[Table]) -> str:
    """A heading, a pipe table and its notes for each; bold is best, underlined second."""
    return "\n".join(_section(table) for table in tables)


def _section(table: Table) -> str:
    """One table."""
    heads = ["Noise (%)", "Method", *(f"{way} {what}".strip() for way, what in HEADINGS)]
    heads += ["Seeds"] if table.repeated else []
    rule = ["---:", "---", *["---:"] * (len(heads) - 2)]
    lines = [heads, rule, *(_row(row, table.repeated) for row in table.rows)]
    grid = [f"| {' | '.join(cells)} |" for cells in lines]
    notes = [f"- {_escaped(note)}" for note in table.notes]
    return "\n".join([f"### {_escaped(table.title)}", "", *grid, "", *notes, ""])


def _row(row: Row, repeated: bool) -> list[str]:
    """The cells of one row."""
    cells = [percent(row.noise), _escaped(row.label), *(_cell(cell) for cell in row.cells)]
    return [*cells, row.seeds] if repeated else cells


def _cell(cell: Cell) -> str:
    return MARKS[cell.place].format(cell.text)


def _escaped(words: str) -> str:
    """Characters that would end a cell or start markup, made plain; "_" inside a word is plain already."""
    return re.sub(r"([\\|<*`\[\]~&$]|(?<!\w)_|_(?!\w))", r"\\\1", words).replace("\n", " ")
