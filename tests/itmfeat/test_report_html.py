"""The HTML report: what the page holds."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import hostile_report
import numpy as np
import pytest
from hostile_report import HOSTILE, TEST, stored
from PIL import Image
from processes import call, fails

from itmfeat.errors import DataError, MissingPackageError
from itmfeat.report import collect, read_published, render, tabulate
from itmfeat.report.html import page
from itmfeat.report.html.hits import MISSED, asked
from itmfeat.report.html.measures import matches, methods, scores
from itmfeat.report.html.thumbnails import SIDE, thumbnail
from itmfeat.report.table import Table

# Fixtures, once for each of the modules.
pictures, runs = hostile_report.pictures, hostile_report.runs
tables, report = hostile_report.tables, hostile_report.report


def test_first_right_hits_equal_a_plain_search(tables: list[Table]) -> None:
    (found,), problems = asked(tables)
    assert not problems
    assert len(found.runs) == 8
    for run, lists in enumerate(found.found["t2i"]):
        for caption, hits in enumerate(lists.tolist()):
            image = found.caption_image[caption]
            assert found.first["t2i"][run, caption] == (hits.index(image) if image in hits else MISSED)
    for run, lists in enumerate(found.found["i2t"]):
        for image, hits in enumerate(lists.tolist()):
            right = [place for place, hit in enumerate(hits) if found.caption_image[hit] == image]
            assert found.first["i2t"][run, image] == (right[0] if right else MISSED)
    scored = {run.results.i2t.r1 for table in tables for row in table.rows for run in row.runs}
    assert {round(100 * float((first == 0).mean()), 6) for first in found.first["i2t"]} == {
        round(each, 6) for each in scored
    }
    wins = np.array(found.wins("t2i"))
    assert (wins.diagonal() == 0).all()
    assert (wins + wins.T <= 2 * TEST).all()


def test_runs_on_other_features_of_the_same_split_meet(tables: list[Table]) -> None:
    rows = tuple(
        replace(
            row,
            runs=tuple(replace(run, config=run.config | {"image_digest": row.method}) for run in row.runs),
        )
        for row in tables[0].rows
    )
    (found,), problems = asked([replace(tables[0], rows=rows)])
    (usual,), _ = asked(tables)
    assert not problems
    order = [usual.runs.index(run) for run in found.runs]
    assert sorted(order) == list(range(8))
    assert (found.first["t2i"] == usual.first["t2i"][order]).all()


def test_a_page_holds_each_thumbnail_once_and_no_path_of_the_machine(report: Path, runs: Path) -> None:
    text = report.read_text(encoding="utf-8")
    (thumbnails,) = stored(text, "thumbnails")
    assert len(thumbnails) == TEST - 1  # the last image has no picture
    assert len(set(thumbnails.values())) == len(thumbnails)
    (gallery,) = stored(text, "galleries")
    assert gallery["totals"] == {"t2i": 2 * TEST, "i2t": TEST}
    assert {way: len(queries) for way, queries in gallery["queries"].items()} == {"t2i": 12, "i2t": 12}
    for machine in (str(runs), str(report.parent), "/tmp", str(Path.home())):
        assert machine not in text


def test_captions_cannot_leave_their_element(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 5  # three of data, Vega, and the page's own
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\';' in text


def test_names_with_markup_are_shown_as_they_are(tables: list[Table]) -> None:
    rows = tuple(replace(row, method=f"<b>'{row.method}'") for row in tables[0].rows)
    text = page([replace(tables[0], dataset="<i>", rows=rows)], queries=0)
    assert "<b>'" not in text
    assert "<i>:" not in text
    assert "<title>&lt;i&gt;: itmfeat report" in text
    assert "data-method='&lt;b&gt;&#x27;snll&#x27;'" in text


def test_published_rows_stand_in_table_and_chart(runs: Path, tmp_path: Path) -> None:
    numbers = "i2t_r1,i2t_r5,i2t_r10,t2i_r1,t2i_r5,t2i_r10"
    file = tmp_path / "published.csv"
    file.write_text(
        f"method,dataset,protocol,noise_protocol,noise_ratio,{numbers},source\n"
        "A-paper,hostile,full,ncr,0.4,30,55,65,20,48,60,Somewhere\n"
    )
    tables = tabulate(collect([runs]).runs, read_published([file]))
    assert methods(tables) == ["snll", "triplet", "A-paper†"]  # ours keep their colours
    (row,) = [row for row in scores(tables) if row["method"] == "A-paper†" and row["metric"] == "rsum"]
    assert (row["noise"], row["mean"], row["std"], row["runs"]) == (40.0, 278.0, 0.0, 0)
    text = page(tables, queries=0)
    assert "A-paper†</th><td data-value='30.0'><span>30.0</span> <small></small></td>" in text
    assert "A-paper: Somewhere" in text


def test_without_pictures_or_a_cache_the_report_says_so(
    tables: list[Table], runs: Path, pictures: Path, at: Path
) -> None:
    told: list[str] = []
    assert stored(page(tables, queries=2, note=told.append), "thumbnails") == [{}]
    assert "no pictures of hostile in data/hostile" in told[0]
    assert stored(page(tables, images=pictures / "images", queries=1), "thumbnails") != [{}]
    with pytest.raises(DataError, match="holds no picture of these runs"):
        page(tables, images=at)
    with pytest.raises(DataError, match=r"7 more cannot be shown in the gallery: .* is no cache"):
        page(tables, cache=at)
    cache = runs.parent / "cache"
    cache.rename(runs.parent / "away")
    told.clear()
    text = page(tables, note=told.append)
    (runs.parent / "away").rename(cache)
    assert "<section id='gallery'" not in text
    assert "7 more cannot be shown in the gallery: its cache is not where it was" in told[0]


def test_a_budget_is_kept_and_what_it_cost_is_told(tables: list[Table], pictures: Path) -> None:
    told: list[str] = []
    bare = len(page(tables, queries=0).encode())
    budget = (bare + 20_000) / 1e6
    text = page(tables, images=pictures, budget=budget, note=told.append)
    assert bare < len(text.encode()) <= budget * 1e6
    left = next(line for line in told if line.startswith("left out"))
    (gallery,) = stored(text, "galleries")
    shown = sum(map(len, gallery["queries"].values()))
    assert int(left.split()[2]) == 3 * TEST - shown > 0
    assert told[-1] == f"the page has {len(text.encode()) / 1e6:.1f} MB"


def test_a_histogram_counts_every_pair_that_was_met(tables: list[Table]) -> None:
    for run in (run for row in tables[0].rows for run in row.runs):
        assert sum(map(sum, run.manifest.match.values())) <= 40
    shares = matches(tables)
    assert {record["noise"] for record in shares} == {40.0}
    for kind in ("clean", "noisy"):
        own = [r["share"] for r in shares if r["pairs"] == kind and r["method"] == "snll"]
        assert sum(own) == pytest.approx(1, abs=1e-3)


def test_thumbnails_are_small_upright_and_stay_inside(pictures: Path, tmp_path: Path) -> None:
    assert thumbnail(pictures, "images/0.png")
    assert thumbnail(pictures, "images/absent.png") is None
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert thumbnail(tmp_path, "broken.jpg") is None
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "root").mkdir()
    assert thumbnail(tmp_path / "root", "../secret.png") is None
    assert thumbnail(tmp_path / "root", str(tmp_path / "secret.png")) is None
    assert thumbnail(pictures / "images", "images/0.png") == thumbnail(pictures, "images/0.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGBA", (4, 4)).save(tmp_path / "clear.png")
    assert opened(thumbnail(tmp_path, "turned.jpg")).size == (SIDE // 2, SIDE)
    assert opened(thumbnail(tmp_path, "clear.png")).getpixel((0, 0)) == (255, 255, 255)


def opened(text: str | None) -> Image.Image:
    import base64
    import io

    assert text
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def test_the_figure_is_an_svg_with_a_line_a_method(tables: list[Table]) -> None:
    figure = render(tables, "svg")
    assert ElementTree.fromstring(figure).tag.endswith("svg")
    assert "triplet" in figure
    assert "var(" not in figure  # colours that any program understands


def test_from_the_command_line(runs: Path, pictures: Path, at: Path) -> None:
    options = ["report", runs, "--format", "html", "--images", pictures, "--queries", 2]
    result = call(*options, "-o", at / "report.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "gallery of hostile: 2 of 28 captions and 2 of 14 images" in result.stderr
    assert (at / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(at.glob("*.part"))
    for budget in (0, "inf", "nan"):
        fails(2, "--budget must be above 0", *options, "--budget", budget)
    fails(2, "there is no folder", *options, "-o", at / "none" / "report.html")


def test_without_altair_one_sentence_names_the_package(
    tables: list[Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itmfeat\[html\]'"):
        page(tables)


def test_a_damaged_log_is_named(runs: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(next(runs.iterdir()), tmp_path / "broken"))
    (broken / "metrics.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        page(tabulate(collect([broken]).runs))
