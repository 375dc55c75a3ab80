"""Run folders in, tables out: what is averaged, what is told apart, and each format to the letter."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import make_run, recalls

from itmfeat.errors import DataError, UsageError
from itmfeat.report import FORMATS, as_terminal, collect, render, renderable, tabulate
from itmfeat.report.output import put
from itmfeat.report.table import Table


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two losses x two noise ratios x two seeds."""
    firsts = {("snll", 0.2): 40.0, ("snll", 0.4): 36.0, ("triplet", 0.2): 41.0, ("triplet", 0.4): 30.0}
    for (loss, ratio), first in firsts.items():
        for seed in (0, 1):
            make_run(tmp_path / "runs" / f"{loss}-{ratio}-{seed}", first + seed, loss, ratio, seed, nets=1)
    return tmp_path / "runs"


def tables_of(*paths: Path) -> list[Table]:
    return tabulate(collect(paths).runs)


# --- formats ---

TITLE = "flickr8k, test split, protocol 1k, ncr noise"
NOTES = [
    "Noise: ncr, seed 96; 20 %: digest 4d367b559264 (effective 19.98 %); "
    "40 %: digest 8152f92aa51c (effective 39.96 %).",
    "Mean ± standard deviation over seeds 0, 1 of the heads.",
    "Single model, epoch selected on the val split; image backbone efficientnet-lite0, "
    "text backbone minilm-l6; head max-linear (pooling=max, projection=linear, dim=1024).",
    "Ranked: 1000 images and 5000 captions. rSum is the sum of the six recalls before rounding.",
]
NARROW = """\
 noise          i2t  i2t  i2t  t2i  t2i  t2i
     % method   R@1  R@5 R@10  R@1  R@5 R@10  rSum seeds
 ───────────────────────────────────────────────────────
    20 snll    40.5 60.5 70.5 30.5 50.5 60.5 313.2     2
               ±0.7 ±0.7 ±0.7 ±0.7 ±0.7 ±0.7  ±4.2
       triplet 41.5 61.5 71.5 31.5 51.5 61.5 319.2     2
               ±0.7 ±0.7 ±0.7 ±0.7 ±0.7 ±0.7  ±4.2

    40 snll    36.5 56.5 66.5 26.5 46.5 56.5 289.2     2
               ±0.7 ±0.7 ±0.7 ±0.7 ±0.7 ±0.7  ±4.2
       triplet 30.5 50.5 60.5 20.5 40.5 50.5 253.2     2
               ±0.7 ±0.7 ±0.7 ±0.7 ±0.7 ±0.7  ±4.2
"""


def test_a_terminal_of_80_columns_to_the_letter(runs: Path) -> None:
    shown = as_terminal.text(tables_of(runs), width=80)
    assert shown.startswith(f"{TITLE}\n\n{NARROW}\n")
    assert " ".join(shown.split()).endswith(" ".join(NOTES))
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_wide_terminal_keeps_a_row_on_a_line(runs: Path) -> None:
    lines = render(tables_of(runs), "table").splitlines()
    row = next(line for line in lines if "triplet" in line)
    values = ["41.5", "61.5", "71.5", "31.5", "51.5", "61.5"]
    cells = [part for value in values for part in (value, "±0.7")]
    assert row.split() == ["triplet", *cells, "319.2", "±4.2", "2"]


def test_best_is_bold_and_second_underlined_on_a_terminal(runs: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=120)
    console.print(renderable(tables_of(runs)))
    assert "\x1b[1m41.5 ±0.7\x1b[0m" in out.getvalue()
    assert "\x1b[4m40.5 ±0.7\x1b[0m" in out.getvalue()


def test_an_unknown_format_names_the_nearest(runs: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'markdown'"):
        render(tables_of(runs), "markdwon")
    assert list(FORMATS) == ["table", "markdown", "latex", "csv", "json", "html", "svg"]


# --- names ---


def test_a_name_with_markup_in_it_is_shown_as_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0, "a|b[bold]<c>*")
    tables = tables_of(tmp_path)
    assert "| a\\|b\\[bold\\]\\<c>\\* |" in render(tables, "markdown")
    assert "a|b[bold]<c>*" in render(tables, "table")


def test_a_long_name_costs_no_number(tmp_path: Path) -> None:
    name = "a-method-with-a-name-that-is-longer-than-anything-a-table-can-hold-on-a-line"
    make_run(tmp_path / "a", 40.0, name)
    make_run(tmp_path / "b", 41.0, name, seed=1)
    shown = as_terminal.text(tables_of(tmp_path), width=80)
    lines = shown.splitlines()
    row = next(line for line in lines if "40.5" in line)
    assert row.split()[2:] == ["40.5", "60.5", "70.5", "30.5", "50.5", "60.5", "313.2", "2"]
    assert max(map(len, lines)) <= 80
    # The name breaks inside its column, and is all there.
    start, end = row.index(name[:9]), row.index("40.5")
    column = "".join(line[start:end].strip() for line in lines[lines.index(row) :])
    assert column.startswith(name)


def test_runs_of_other_settings_are_other_rows_named_by_the_fewest(tmp_path: Path) -> None:
    head = {"name": "gpo-mlp", "pooling": "gpo", "projection": "mlp", "dim": 512}
    make_run(tmp_path / "a", 40.0)
    make_run(tmp_path / "b", 41.0, config={"head": head})
    make_run(tmp_path / "c", 42.0, config={"loss": {"name": "triplet", "margin": 0.5}})
    make_run(tmp_path / "d", 43.0, "snll")
    (table,) = tables_of(tmp_path)
    assert [row.method for row in table.rows] == [
        "snll (max-linear)",
        "triplet (gpo-mlp, margin=0.2)",
        "triplet (max-linear, margin=0.2)",
        "triplet (max-linear, margin=0.5)",
    ]
    assert "head as in the rows" in table.notes[2]
    assert table.notes[2].startswith("Single or ensemble not recorded, epoch")


def test_a_setting_that_goes_with_the_loss_is_not_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0, config={"schedule": {"lr": 1e-3}})
    make_run(tmp_path / "b", 41.0, "rcl", config={"schedule": {"lr": 5e-4}})
    (table,) = tables_of(tmp_path)
    assert [row.method for row in table.rows] == ["rcl", "triplet"]


def test_other_features_are_another_row(tmp_path: Path) -> None:
    data = {"dataset": "flickr8k", "image_backbone": "clip", "text_backbone": "clip"}
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        make_run(tmp_path / name, 40.0, config={"data": data | {"image_digest": digest}})
    (table,) = tables_of(tmp_path)
    names = [f"triplet (image_digest={digit * 12})" for digit in "12"]
    assert [row.method for row in table.rows] == names
    assert "image backbone clip" in table.notes[2]


# --- groups, places, footnotes ---


def test_each_dataset_protocol_and_noise_protocol_has_its_table(tmp_path: Path) -> None:
    folds = {"protocol": "5x1k", "split": "test", "images": 5000, "captions": 25000}
    folds |= {"i2t": recalls(60), "t2i": recalls(50), "rsum": 0}
    coco = {"protocol": "5k", "images": 5000, "captions": 25000, "5x1k": folds}
    make_run(tmp_path / "a", 40.0, config={"dataset": "coco"}, results=coco)
    make_run(tmp_path / "b", 41.0)
    make_run(tmp_path / "c", 42.0, config={"noise": {"ratio": 0.2, "protocol": "decl", "seed": 1}})
    make_run(tmp_path / "d", 43.0, results={"split": "val"})
    make_run(tmp_path / "e", 43.0, ratio=0.0, config={"dataset": "demo"})
    assert [table.title for table in tables_of(tmp_path)] == [
        "coco, test split, protocol 5k, ncr noise",
        "coco, test split, protocol 5x1k, ncr noise",
        "demo, test split, protocol 1k, no noise",
        "flickr8k, test split, protocol 1k, decl noise",
        "flickr8k, test split, protocol 1k, ncr noise",
        "flickr8k, val split, protocol 1k, ncr noise",
    ]


def test_runs_without_noise_are_in_the_tables_of_all_protocols(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 45.0, ratio=0)
    make_run(tmp_path / "b", 40.0, ratio=0.2)
    make_run(tmp_path / "c", 42.0, config={"noise": {"ratio": 0.2, "protocol": "decl", "seed": 1}})
    for table in tables_of(tmp_path):
        assert [row.noise for row in table.rows] == [0, 0.2]
        assert f"Noise: {table.noise_protocol}, seed" in table.notes[0]
    again = make_run(tmp_path / "d", 46.0, config={"noise": {"ratio": 0, "protocol": "decl", "seed": 1}})
    decl, ncr = tables_of(tmp_path)
    assert [run.path for run in decl.rows[0].runs] == [again]  # each protocol has its own now
    assert [run.path for run in ncr.rows[0].runs] == [tmp_path / "a"]


def test_places_count_unrounded_and_share_the_best(tmp_path: Path) -> None:
    for name, first in {"a": 40.01, "b": 40.02, "c": 40.02, "d": 39.0}.items():
        make_run(tmp_path / name, first, name)
    (table,) = tables_of(tmp_path)
    assert [row.cells[0].place for row in table.rows] == [2, 1, 1, 0]


def test_a_row_alone_is_not_the_best_of_anything(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0)
    text = render(tables_of(tmp_path), "markdown")
    assert "**" not in text
    assert "Seeds |" not in text
    assert "- Seed 0." in text


def test_a_noise_file_is_told_by_its_effective_rate(tmp_path: Path) -> None:
    noise = {"ratio": 0.0, "protocol": "ncr", "seed": 96, "file": "f30k_0.2.npy"}
    seen = {"digest": "4d367b5592645950", "effective": 0.19999}
    make_run(tmp_path / "a", 40.0, config={"noise": noise}, manifest={"noise": seen})
    (table,) = tables_of(tmp_path)
    assert table.title.endswith("file noise")
    assert table.rows[0].noise == 0.2
    assert table.notes[0] == "Noise: file; 20 %: digest 4d367b559264 (effective 20.00 %)."


def test_footnotes_warn_of_what_makes_rows_unequal(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0)
    make_run(tmp_path / "b", 41.0)
    make_run(tmp_path / "c", 42.0, "snll", seed=3, manifest={"noise": {"digest": "f" * 64}})
    (table,) = tables_of(tmp_path)
    assert table.notes[:5] == (
        "Noise: ncr, seed 96; 20 %: digest ffffffffffff and digest 4d367b559264 (effective 19.98 %).",
        "Runs at 20 % saw different noise: compare them with care.",
        "Mean ± standard deviation over seeds 0, 3 of the heads.",
        "snll at 20 % lacks seed 0.",
        "triplet at 20 % counts seed 0 2 times.",
    )


def test_a_run_without_manifest_says_so(tmp_path: Path) -> None:
    (make_run(tmp_path / "a", 40.0) / "manifest.json").unlink()
    (table,) = tables_of(tmp_path)
    assert table.notes[0] == "Noise: ncr, seed 96; 20 %: digest not recorded."
    assert "selected on the unrecorded split" in table.notes[2]


# --- reading folders ---


def test_folders_are_found_two_levels_down_and_counted_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep" / "one", 40.0)
    make_run(tmp_path / "two", 40.0, seed=1)
    make_run(tmp_path / "too" / "far" / "down", 40.0, seed=2)
    found = collect([tmp_path, run, str(run)])
    assert [path.path.name for path in found.runs] == ["one", "two"]
    assert found.note is None


def test_unfinished_runs_are_named_and_left_out(runs: Path) -> None:
    folder = make_run(runs / "late", None, seed=7)
    found = collect([runs])
    assert len(found.runs) == 8
    assert found.note is not None
    assert found.note.endswith(f"unfinished (repeat the command to resume): {folder}")


def test_diverged_runs_have_a_reason_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0)
    lost = make_run(tmp_path / "lost", None, manifest={"diverged": 3})
    late = make_run(tmp_path / "late", None, manifest={"diverged": None})
    found = collect([tmp_path])
    assert (found.unfinished, found.diverged) == ([late], [lost])
    assert found.note is not None
    assert f"resume): {late}; because diverged (" in found.note
    assert found.note.endswith(f"learning rate): {lost}")


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        put(tmp_path / "taken", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_nothing_finished_is_no_empty_table(tmp_path: Path) -> None:
    make_run(tmp_path / "late", None)
    with pytest.raises(DataError, match="none of the runs is finished"):
        tables_of(tmp_path)


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_no_run_at_all_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"there is no run in .*{name}"):
        collect([tmp_path / name])


@pytest.mark.parametrize("name", ["config.json", "results.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    file = make_run(tmp_path / "a", 40.0) / name
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"{name} is damaged"):
        collect([tmp_path])


def test_a_missing_number_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 40.0, results={"t2i": {"r1": 1.0, "r5": 2.0}})
    with pytest.raises(DataError, match=r"t2i\.r10: Field required"):
        collect([tmp_path])


def test_results_without_configuration_are_named(tmp_path: Path) -> None:
    (make_run(tmp_path / "a", 40.0) / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        collect([tmp_path])


def test_reports_load_no_heavy_library() -> None:
    code = "import sys, itmfeat.report; print({'torch', 'numpy', 'faiss', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_robust_methods_are_rows_of_their_own(tmp_path: Path) -> None:
    for name, method in {"plain": "none", "ncr": "ncr", "other": "ncr"}.items():
        robust = {"name": method} if method == "none" else {"name": method, "warm": 3 if name == "ncr" else 2}
        make_run(tmp_path / name, 20.0, config={"robust": robust})
    make_run(tmp_path / "before", 20.0, loss="snll")  # a configuration without the section
    (table,) = tabulate(collect([tmp_path]).runs)
    methods = {row.method for row in table.rows}
    assert methods == {"snll", "triplet", "triplet+ncr (warm=2)", "triplet+ncr (warm=3)"}
    (record, *_) = (one for one in json.loads(render([table], "json")) if one["robust"] == "ncr")
    assert record["loss"] == "triplet"
