"""Tables for spreadsheets: the records of `as_json`, lists joined by blanks."""

import csv
import io
from collections.abc import Sequence

from itmfeat.report.as_json import records
from itmfeat.report.table import Table


def text(tables: Sequence[Table]) -> str:
    """A header and a line a row."""
    found = records(tables)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    for record in found:
        writer.writerow({key: _joined(value) for key, value in record.items()})
    return out.getvalue()


def _joined(value: object) -> object:
    """A list as one field; unknown values stay empty."""
    if isinstance(value, list):
        return " ".join(str(part) for part in value if part is not None)
    return value
