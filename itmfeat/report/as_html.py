"""The report as one HTML page, charts and gallery included; `itmfeat.report.html` makes it."""

from collections.abc import Sequence

from itmfeat.report.table import Table


def text(tables: Sequence[Table]) -> str:
    """The page, with the pictures that lie in `data/DATASET`."""
    from itmfeat.report.html import page

    return page(tables)
