"""The page: sections from what there is to show, all it needs in one file, and a policy that forbids more."""

import base64
import hashlib
import math
import os
from collections.abc import Collection, Sequence
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from itmfeat.errors import DataError, Note, UsageError, silent
from itmfeat.report.html import charts, measures
from itmfeat.report.html.gallery import Gallery, galleries, packed
from itmfeat.report.html.hits import WAYS, Asked, asked
from itmfeat.report.html.sections import controls, made, section
from itmfeat.report.pictures import below
from itmfeat.report.table import Table

MEGABYTE = 1_000_000
FRAME = 10_000  # bytes that the section of the gallery takes beside its contents


def page(
    tables: Sequence[Table],
    *,
    images: Path | None = None,
    cache: Path | None = None,
    budget: float = 20.0,
    queries: int = 60,
    note: Note = silent,
) -> str:
    """A report as one HTML page that loads nothing: charts, tables, and a gallery of what the runs found.

    `images` is the dataset's folder, or the one in it with the image files (default `data/DATASET`), `cache`
    stands in for the cache that the runs name. The gallery shows at most `queries` of each direction, and as
    many as keep the page below `budget` megabytes; `note` is told how large it became and what was left out.
    """
    if not 0 < budget < math.inf or queries < 0:  # also where it is no number
        raise UsageError("--budget must be above 0 megabytes and finite, and --queries at least 0")
    parts: dict[str, Any] = {"charts": charts.specifications(tables), "galleries": [], "thumbnails": []}
    room = int(budget * MEGABYTE) - len(_filled(tables, [], parts).encode()) - FRAME
    found, problems = asked(tables, cache) if queries else ([], [])
    if cache and problems and not found:
        raise DataError(problems[0])
    for problem in problems:
        note(problem)
    shown = galleries(found, _roots(found, images, note), room, queries)
    parts |= {"galleries": [one.data for one in shown], "thumbnails": [one.thumbnails for one in shown]}
    whole = _filled(tables, shown, parts)
    _tell(shown, len(whole.encode()), budget, note)
    return whole


def _roots(splits: Sequence[Asked], images: Path | None, note: Note) -> list[Path | None]:
    """Where the image files of each dataset lie; None, and a note, if they are not to be found.

    A DataError if `images` is given and holds those of none.
    """
    roots: list[Path | None] = []
    for one in splits:
        root = images or Path("data") / one.dataset
        there = any(os.path.isfile(root / below(root, name)) for name in one.files)
        roots.append(root if there else None)
        if not there:
            note(f"there are no pictures of {one.dataset} in {root}, so the gallery names them; see --images")
    if images and splits and not any(roots):
        raise DataError(f"{images} holds no picture of these runs, such as {splits[0].files[0]}")
    return roots


def _tell(shown: Sequence[Gallery], size: int, budget: float, note: Note) -> None:
    """How large the page became, what the gallery holds, and which queries found no room."""
    for one in shown:
        taken = " and ".join(
            f"{len(one.queries[way])} of {one.asked.first[way].shape[1]} {what}"
            for way, what in zip(WAYS, ("captions", "images"), strict=True)
        )
        note(f"gallery of {one.asked.dataset}: {taken}, {len(one.thumbnails)} thumbnails")
        if one.unreadable:
            note(f"{one.unreadable} pictures are not there or cannot be read; the gallery names them")
        left = {way: ids for way, ids in one.left_out.items() if ids}
        if left:
            named = "; ".join(f"{way} {', '.join(map(str, ids))}" for way, ids in left.items())
            count = sum(map(len, left.values()))
            note(f"left out {count} queries to stay below {budget:g} MB (--budget): {named}")
    over = f", more than --budget {budget:g} even without a gallery" if size > budget * MEGABYTE else ""
    note(f"the page has {size / MEGABYTE:.1f} MB{over}")


def _filled(tables: Sequence[Table], shown: Sequence[Gallery], parts: dict[str, Any]) -> str:
    """The template with everything in its place."""
    vega, script = _bundle(), _file("page.js")
    methods, ratios = measures.methods(tables), measures.ratios(tables)
    runs = {run.path.resolve() for table in tables for row in table.rows for run in row.runs}
    datasets = escape(", ".join(sorted({table.dataset for table in tables})))
    sections = made(tables, parts["charts"], bool(shown))
    return Template(_file("page.html")).substitute(
        policy=_policy(vega, script),
        datasets=datasets,
        summary=", ".join(
            [_count(runs, "finished run"), _count(methods, "method"), _count(ratios, "noise ratio")]
        ),
        style=_file("page.css"),
        links="".join(f"<li><a href='#{name}'>{title}</a></li>" for name, title, _ in sections),
        controls=controls(tables),
        sections="\n".join(section(*each) for each in sections),
        data="\n".join(_json(name, value) for name, value in parts.items()),
        vega=vega,
        script=script,
        version=version("itmfeat"),
    )


def _count(things: Collection[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


@cache
def _bundle() -> str:
    return charts.bundle()


def _file(name: str) -> str:
    return files("itmfeat.report.html").joinpath(name).read_text(encoding="utf-8")


def _json(name: str, value: Any) -> str:
    """Data for the script."""
    return f'<script type="application/json" id="{name}">{packed(value)}</script>'


def _policy(*scripts: str) -> str:
    """What the page may do: run these very scripts, show pictures it holds itself, and fetch nothing."""
    hashes = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
