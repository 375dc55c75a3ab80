"""The figure of a paper: rSum against the noise ratio, a line a method, bands over seeds."""

from collections.abc import Sequence

from itmfeat.report.table import Table


def text(tables: Sequence[Table]) -> str:
    """An SVG with a panel a table."""
    from itmfeat.report.html.charts import figure

    return figure(tables)
