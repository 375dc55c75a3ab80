"""Each format to the letter, over run folders and published rows with names that mean harm.

`WRITE_GOLDEN=1 pytest tests/itmfeat/test_report_formats.py` writes the golden files anew; read their diff.
"""

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import make_run

from itmfeat.report import FORMATS, as_latex, collect, read_published, render, tabulate
from itmfeat.report.as_latex import escaped
from itmfeat.report.published import COLUMNS
from itmfeat.report.table import Table

GOLDEN = Path(__file__).parent / "golden"
ENDINGS = {"table": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}
HOSTILE = 'a|b[bold]<c>*_d_ & 50% #1 $x$ {y} ~^\\z "q" `r` -- σ±Ł中'
RECALLS = "62.8,86.2,92.2,44.4,72.3,80.4"  # their sum is 438.3


def published(folder: Path, *lines: str, columns: str = ",".join(COLUMNS)) -> Path:
    """A file of published rows."""
    file = folder / "published.csv"
    file.write_text("\n".join([columns, *lines, ""]), encoding="utf-8")
    return file


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    """Two datasets; seeds, a lone seed, a method of two nets, published rows, and names full of markup."""
    runs = tmp_path / "runs"
    firsts = {("snll", 0.2): 40.0, ("snll", 0.4): 36.0, ("triplet", 0.2): 41.0, ("triplet", 0.4): 30.0}
    for (loss, ratio), first in firsts.items():
        for seed in (0, 1):
            make_run(runs / f"{loss}-{ratio}-{seed}", first + seed, loss, ratio, seed, nets=1)
    co_teaching = {"robust": {"name": "ncr", "warm": 3}}
    make_run(runs / "two-nets", 42.0, "triplet", 0.4, nets=2, config=co_teaching)
    hostile = {"dataset": "f_30k & co | 100%"}
    make_run(runs / "hostile", 40.0, HOSTILE, 0.0, nets=1, config=hostile)
    make_run(runs / "calm", 41.0, "triplet", 0.0, nets=1, config=hostile)
    file = published(
        tmp_path,
        f"SGR*,flickr8k,1k,ncr,0.2,{RECALLS},438.2,A (2021),pre-trained",
        f"B_C,flickr8k,1k,ncr,0.2,{RECALLS},,A (2021),pre-trained",
        f'SGR*,flickr8k,1k,ncr,0.4,{RECALLS},,"D & E, 50%",',
        f"SGR*,flickr8k,1k,decl,0.4,{RECALLS},,elsewhere,",
        f'"{HOSTILE.replace(chr(34), chr(34) * 2)}",f_30k & co | 100%,1k,,0,{RECALLS},,F_G,',
    )
    return tabulate(collect([runs]).runs, read_published([file]))


@pytest.mark.parametrize("form", list(ENDINGS))
def test_each_format_to_the_letter(tables: list[Table], form: str) -> None:
    file = GOLDEN / f"report.{ENDINGS[form]}"
    shown = render(tables, form)
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
    assert set(FORMATS) == ENDINGS.keys() | {"html", "svg"}  # which hold what their libraries draw


def test_csv_says_what_json_says(tables: list[Table]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    records = json.loads(render(tables, "json"))
    for row, record in zip(rows, records, strict=True):
        assert list(row) == list(record)
        assert float(row["rsum_mean"]) == record["rsum_mean"]
        assert row["method"] == record["method"]
        assert row["seeds"] == " ".join(map(str, record["seeds"]))


# --- LaTeX ---


def test_latex_is_ascii_and_nothing_is_lost() -> None:
    assert escaped("a_b & 5% #1 $x$ {y}") == r"a\_b \& 5\% \#1 \$x\$ \{y\}"
    assert escaped("~^\\|<>") == (
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}\textless{}\textgreater{}"
    )
    assert escaped("σ±0.5 × Ω†") == r"$\sigma$$\pm$0.5 $\times$ $\Omega$$^\dagger$"
    assert escaped("Müller Łoś ç ı") == r"M\"{u}ller \L{}o\'{s} \c{c} \i{}"
    assert escaped("中 😀 \u202e \x00 ſ") == "[U+4E2D] [U+1F600] [U+202E] [U+0000] [U+017F]"
    assert escaped("a---b – c\n\td") == r"a-{}-{}-b \textendash{} c d"


def test_names_that_name_nothing_else_in_a_label(tables: list[Table]) -> None:
    assert r"\label{tab:f-30k-co-100-test-1k-ncr}" in as_latex.text(tables)


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_fits_the_page(tables: list[Table], tmp_path: Path, paper: str) -> None:
    printable = "".join(map(chr, range(32, 127)))
    others = "".join(map(chr, [*range(0xA1, 0x180), *range(0x391, 0x3CA), 0x2122, 0x1F600, 0x5D0]))
    for place, name in enumerate([printable, others, *(f"method {n}" for n in range(36))]):
        config = {"dataset": "tall", "loss": {"name": name}}
        make_run(tmp_path / "tall" / str(place), 40.0 + place / 10, name, 0.2, config=config)
        make_run(tmp_path / "tall" / f"{place}-1", 40.0 + place / 10, name, 0.2, 1, config=config)
    tables += tabulate(collect([tmp_path / "tall"]).runs)
    body = as_latex.text(tables)
    assert body.isascii()
    document = (
        f"\\documentclass[{paper}]{{article}}\n\\usepackage{{booktabs,multirow,graphicx}}\n"
        f"\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    (tmp_path / "table.tex").write_text(document, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "table.log").read_text(encoding="latin-1")
    assert done.returncode == 0, log[-2000:]
    for word in ("Overfull", "too large", "Missing character", "LaTeX Warning: Command"):
        assert word not in log, log
