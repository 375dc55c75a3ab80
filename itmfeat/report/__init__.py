"""From run folders to tables.

    folders --collect--> runs, published rows --tabulate--> tables --FORMATS--> text

Run folders and files of published rows are all that is read, and a `Table` is all that a format sees; the
HTML page also shows captions and pictures, which it asks of the cache and the dataset. A further format is
one module `as_NAME.py` with a `text(tables)`, and its line in `FORMATS`.
"""

from collections.abc import Callable, Sequence

from itmfeat.errors import unknown
from itmfeat.report import as_csv, as_html, as_json, as_latex, as_markdown, as_svg, as_terminal
from itmfeat.report.as_terminal import renderable
from itmfeat.report.collect import Collected, collect, run_folders
from itmfeat.report.grouping import tabulate, unplaced
from itmfeat.report.published import Published, read_published
from itmfeat.report.table import Table

__all__ = [
    "FORMATS",
    "Collected",
    "Published",
    "Table",
    "collect",
    "read_published",
    "render",
    "renderable",
    "run_folders",
    "tabulate",
    "unplaced",
]

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "table": as_terminal.text,
    "markdown": as_markdown.text,
    "latex": as_latex.text,
    "csv": as_csv.text,
    "json": as_json.text,
    "html": as_html.text,
    "svg": as_svg.text,
}


def render(tables: Sequence[Table], format: str = "table") -> str:
    """The tables as text. On a terminal, print `renderable(tables)` with rich for bold and width."""
    if format not in FORMATS:
        raise unknown("format", format, list(FORMATS))
    return FORMATS[format](tables)
