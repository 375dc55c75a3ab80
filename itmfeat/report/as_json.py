"""Tables for programs: a flat list of records, numbers unrounded."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from itmfeat.report.names import head_of
from itmfeat.report.table import METRICS, Row, Table


def text(tables: Sequence[Table]) -> str:
    """A list with an object a row."""
    return json.dumps(records(tables), indent=1) + "\n"


def records(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """One record for each row of each table; a list where its runs differ or may differ.

    All have the same keys; what is not known of a published row is None or an empty list.
    """
    return [_record(table, row) for table in tables for row in table.rows]


def _record(table: Table, row: Row) -> dict[str, Any]:
    """What is known of one row."""
    first = row.runs[0] if row.runs else None
    config = first.config if first else {}
    record: dict[str, Any] = {
        "dataset": table.dataset,
        "protocol": table.protocol,
        "split": table.split,
        "images": first.results.images if first else None,
        "captions": first.results.captions if first else None,
        "noise_protocol": table.noise_protocol,
        "noise_ratio": row.noise,
        "noise_seeds": _different(run.config.get("noise.seed") for run in row.runs),
        "noise_digests": _different(run.manifest.noise.digest for run in row.runs),
        "noise_effective": _different(run.manifest.noise.effective for run in row.runs),
        "method": row.method,
        "loss": config.get("loss.name"),
        "robust": config.get("robust.name", "none") if first else None,
        "nets": first.nets if first else None,
        "image_backbone": config.get("image_backbone"),
        "text_backbone": config.get("text_backbone"),
        "head": head_of(first) if first else None,
        "selection_splits": _different(run.manifest.selection.split for run in row.runs),
        "runs": len(row.runs),
        "seeds": [run.seed for run in row.runs],
    }
    for metric, cell in zip(METRICS, row.cells, strict=True):
        record[f"{metric}_mean"] = cell.mean
        record[f"{metric}_std"] = cell.std
    published = row.published
    return record | {
        "source": published.source if published else None,
        "note": published.note if published else None,
    }


def _different(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))
