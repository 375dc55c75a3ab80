"""Published rows: which table they join, and what is wrong with a file, by its line."""

from pathlib import Path

import pytest
from processes import call, fails
from run_folders import make_run

from itmfeat.errors import DataError
from itmfeat.report import collect, read_published, tabulate, unplaced
from itmfeat.report.published import COLUMNS

ROOT = Path(__file__).parents[2]
RECALLS = "62.8,86.2,92.2,44.4,72.3,80.4"  # their sum is 438.3
GOOD = f"SGR,flickr8k,1k,ncr,0.2,{RECALLS},438.3,A,"


def write(folder: Path, *lines: str, header: str = ",".join(COLUMNS)) -> Path:
    file = folder / "rows.csv"
    file.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return file


def test_the_rows_of_the_repository_are_right() -> None:
    rows = read_published([ROOT / "data" / "published.csv"])
    assert len(rows) == 114
    (wrong,) = [row for row in rows if "printed sum" in row.note]
    assert (wrong.method, wrong.noise, round(wrong.metrics[-1], 1)) == ("UCPM", 0.2, 511.8)


def test_rows_join_the_table_of_their_setting_unmarked_and_the_rest_is_told(tmp_path: Path) -> None:
    for ratio in (0.0, 0.2):
        for name, first in (("a", 40.0), ("b", 41.0)):
            make_run(tmp_path / f"{name}{ratio}", first, name, ratio)
    file = write(
        tmp_path,
        GOOD,
        f"Clean,flickr8k,1k,,0,{RECALLS},,A,",
        f"Elsewhere,flickr8k,1k,decl,0.2,{RECALLS},,A,",
        f"More,flickr8k,1k,decl,0.4,{RECALLS},,A,",
        f"High,flickr8k,1k,ncr,0.8,{RECALLS},,A,",
    )
    rows = read_published([file, file])  # given twice, read once
    (table,) = tables = tabulate(collect([tmp_path]).runs, rows)
    assert [row.label for row in table.rows] == ["Clean†", "a", "b", "SGR†", "a", "b"]
    assert [row.cells[0].place for row in table.rows] == [0, 2, 1, 0, 2, 1]
    told = "not in a table, for there is no run to stand beside: "
    assert unplaced(rows, tables) == [
        f"{told}2 lines, the first 4 of {file} (flickr8k, protocol 1k, decl noise at 20, 40 %)",
        f"{told}line 6 of {file} (flickr8k, protocol 1k, ncr noise at 80 %)",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("438.3", "439.0"), "rsum 439 is not the sum of its six recalls, 438.3"),
        (GOOD.replace("62.8", "162.8"), "i2t_r1 162.8 is no percentage"),
        (GOOD.replace("62.8", "-1"), "i2t_r1 -1 is no percentage"),
        (GOOD.replace("62.8", "nan"), "i2t_r1 'nan' is no number"),
        (GOOD.replace("62.8", '"62,8"'), "i2t_r1 '62,8' is no number"),
        (GOOD.replace("62.8", "87.0"), "a recall falls from R@1 to R@10"),
        (GOOD.replace("62.8", ""), "has no i2t_r1"),
        (GOOD.replace("0.2", "20"), "noise_ratio 20 is not in"),
        (GOOD.replace(",A,", ",,"), "has no source"),
        (GOOD.replace("ncr", ""), "has no noise_protocol"),
        (GOOD.replace("SGR", "\x1b[1mSGR"), "method holds a character"),
        (GOOD + ",more", "has 15 fields, but there are 14 columns"),
        (GOOD + '"x', "is no line of a CSV file"),
        (f"\n{GOOD}\n{GOOD}", "repeats line 3"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    number = line.count("\n") + 2 if line.startswith("\n") else 2
    with pytest.raises(DataError, match=rf"rows\.csv, line {number}.*{message}"):
        read_published([write(tmp_path, line)])


def test_a_sum_may_be_off_by_rounding(tmp_path: Path) -> None:
    (row,) = read_published([write(tmp_path, GOOD.replace("438.3", "438.6"))])
    assert row.metrics[-1] == 438.6


def test_wrong_columns_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: unknown column 'sources': did you mean 'source'"):
        read_published([write(tmp_path, header=",".join(COLUMNS).replace("source", "sources"))])
    with pytest.raises(DataError, match="line 1 names the column note twice"):
        read_published([write(tmp_path, header=",".join([*COLUMNS, "note"]))])
    with pytest.raises(DataError, match="line 1 lacks source; the columns are method"):
        read_published([write(tmp_path, header=",".join(COLUMNS[:-2]))])
    (tmp_path / "latin.csv").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match="not encoded in UTF-8"):
        read_published([tmp_path / "latin.csv"])
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_published([tmp_path / "none.csv"])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="line 1 lacks method"):
        read_published([tmp_path / "empty.csv"])


def test_the_command_takes_several_files(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", 40.0)
    file = write(tmp_path, GOOD)
    done = call("report", tmp_path / "runs", "--with", file, "--with", file, "--format", "markdown")
    assert done.exit_code == 0
    assert "| 20 | SGR† | 62.8 |" in done.stdout
    assert done.stderr == ""
    fails(
        3,
        r"line 2.*no number",
        "report",
        tmp_path / "runs",
        "--with",
        write(tmp_path, GOOD.replace("62.8", "x")),
    )
