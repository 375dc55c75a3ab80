"""Tables for programs: a flat list of records, numbers unrounded."""

import json
from collections.abc import Sequence
from typing import Any

from itmfeat.report.table import METRICS, Row, Table, head_of


def text(tables: Sequence[Table]) -> str:
    """A list with an object a row."""
    return json.dumps(records(tables), indent=1) + "\n"


def records(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """One record for each row of each table; a list where its runs differ or may differ."""
    return [_record(table, row) for table in tables for row in table.rows]


def _record(table: Table, row: Row) -> dict[str, Any]:
    """What is known of one row."""
    first = row.runs[0]
    record: dict[str, Any] = {
        "dataset": table.dataset,
        "protocol": table.protocol,
        "split": table.split,
        "images": first.results.images,
        "captions": first.results.captions,
        "noise_protocol": table.noise_protocol,
        "noise_ratio": row.noise,
        "noise_seeds": _different(run.config.get("noise.seed") for run in row.runs),
        "noise_digests": _different(run.manifest.noise.digest for run in row.runs),
        "method": row.method,
        "loss": first.config.get("loss.name"),
        "robust": first.config.get("robust.name", "none"),
        "image_backbone": first.config.get("image_backbone"),
        "text_backbone": first.config.get("text_backbone"),
        "head": head_of(first),
        "selection_splits": _different(run.manifest.selection.split for run in row.runs),
        "runs": len(row.runs),
        "seeds": [run.seed for run in row.runs],
    }
    for metric, cell in zip(METRICS, row.cells, strict=True):
        record[f"{metric}_mean"] = cell.mean
        record[f"{metric}_std"] = cell.std
    return record


def _different(values: "Any") -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))
