"""The HTML report: what the page holds, and how it behaves in a real browser where there is one."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_features
from PIL import Image
from processes import CHROMIUM, PATIENCE, call, fails

from itmfeat.cache import FeatureSpec, write_index
from itmfeat.errors import DataError, MissingPackageError
from itmfeat.report import collect, read_published, render, tabulate
from itmfeat.report.html import page
from itmfeat.report.html.hits import MISSED, asked
from itmfeat.report.html.measures import matches, methods, scores
from itmfeat.report.html.thumbnails import SIDE, thumbnail
from itmfeat.report.table import Table
from itmfeat.sweeps import sweep

IMAGES, TEST = 44, 14
HOSTILE = "<script>alert(1)</script> & <!-- </script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a dataset with a picture for each image but the last."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    for row in range(IMAGES - 1):
        Image.new("RGB", (300, 200), (5 * row, 80, 160)).save(root / "images" / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses x two noise ratios x two seeds, trained on a cache whose captions are hostile."""
    folder, rng = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    owner = np.repeat(np.arange(IMAGES), 2)
    digest = write_index(
        folder / "cache" / "dataset.h5",
        "hostile",
        {
            "image_id": [str(row) for row in range(IMAGES)],
            "image_file": [f"images/{row}.png" for row in range(IMAGES)],
            "caption": [f"{HOSTILE} number {row}" for row in range(2 * IMAGES)],
        },
        {
            "image_split": np.repeat([0, 1, 2], [20, 10, TEST]).astype(np.uint8),
            "caption_id": np.arange(2 * IMAGES),
            "caption_image": owner,
        },
    )
    code = rng.standard_normal((IMAGES, 6))
    for kind, name, each in (("image", "grid", np.arange(IMAGES)), ("text", "words", owner)):
        vectors = code[each] + 0.4 * rng.standard_normal((len(each), 6))
        spec = FeatureSpec(kind, name, digest, np.ones(len(each), np.int64), 6)
        write_features(folder / "cache" / kind / f"{name}.h5", spec, vectors)
    grid = {"loss": ["triplet", "snll"], "noise": [0, 0.4], "seed": [0, 1]}
    sweep(
        **grid, **{"head.dim": 64, "epochs": 3, "batch_size": 8}, cache=folder / "cache", runs=folder / "runs"
    )
    return folder / "runs"


@pytest.fixture(scope="module")
def tables(runs: Path) -> list[Table]:
    return tabulate(collect([runs]).runs)


@pytest.fixture(scope="module")
def report(tables: list[Table], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(tables, images=pictures, queries=12), encoding="utf-8")
    return file


def stored(text: str, name: str) -> Any:
    """Data that a page holds for its script."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


# --- what the page holds ---


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


# --- in a browser ---

SIZES = pytest.mark.parametrize("width", [1440, 390])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed, so the page cannot be opened")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=CHROMIUM, timeout=PATIENCE)
        yield started
        started.close()


class Opened:
    """The report in a window; `done` asserts that it was quiet and asked for nothing."""

    def __init__(self, browser: Any, report: Path, width: int = 1440, scheme: str = "light") -> None:
        self.address = report.as_uri()
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.goto(self.address)
        self.page.wait_for_selector("[data-chart=noise] svg")

    def through(self) -> None:
        """Scroll to the end, so that everything that waits for it is drawn."""
        for box in self.page.query_selector_all("section, .chart"):
            box.scroll_into_view_if_needed()
        self.page.wait_for_function("[...document.querySelectorAll('.chart')].every((box) => box.firstChild)")

    def text(self, selector: str) -> list[str]:
        return [str(found).strip() for found in self.page.locator(selector).all_text_contents()]

    def done(self) -> None:
        assert self.said == []
        assert {url for url in self.asked if not url.startswith("data:")} == {self.address}
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        self.page.close()


@pytest.mark.slow
@SIZES
def test_the_page_is_quiet_asks_for_nothing_and_fits(browser: Any, report: Path, width: int) -> None:
    window = Opened(browser, report, width)
    window.through()
    window.page.wait_for_selector("#gallery .tile img[src^='data:image/webp']")
    assert HOSTILE in window.text(".card h3")[0]
    sizes = window.page.evaluate("[...document.querySelectorAll('.chart svg')].map((svg) => svg.clientWidth)")
    assert min(sizes) > 150
    assert max(sizes) <= width
    assert window.page.title() == "hostile: itmfeat report"
    unnamed = "[...document.querySelectorAll('img')].filter((img) => !img.alt).length"
    assert window.page.evaluate(unnamed) == 0
    window.done()


@pytest.mark.slow
@SIZES
def test_filters_and_sorting(browser: Any, report: Path, width: int) -> None:
    window = Opened(browser, report, width)
    window.page.select_option("select[data-signal=metric]", label="text → image R@1")
    values = "[...document.querySelectorAll('[data-chart=noise] [aria-roledescription=point]')].length"
    window.page.wait_for_function(f"{values} === 4")
    window.page.uncheck("input[value=snll]")
    window.page.wait_for_function(f"{values} === 2")
    assert window.text("tbody tr:visible th") == ["triplet", "triplet"]
    window.page.check("input[value=snll]")
    window.page.click("thead button[aria-label='sort by rSum']")
    shown = [float(text) for text in window.text("tbody tr td:nth-last-child(2) span")]
    assert shown == sorted(shown, reverse=True)
    assert window.page.get_attribute("th:has(button[aria-label='sort by rSum'])", "aria-sort") == "descending"
    window.page.click("thead button[aria-label='sort by Method']")
    assert window.text("tbody th") == ["snll", "snll", "triplet", "triplet"]
    window.done()


@pytest.mark.slow
def test_charts_of_several_tables(browser: Any, tables: list[Table], pictures: Path, tmp_path: Path) -> None:
    lone = replace(tables[0], protocol="5k", rows=tables[0].rows[:2])
    (tmp_path / "two.html").write_text(page([tables[0], lone], images=pictures, queries=2), encoding="utf-8")
    window = Opened(browser, tmp_path / "two.html", 390)
    points = "document.querySelectorAll('[data-chart=noise] [aria-roledescription=point]').length"
    window.page.wait_for_function(f"{points} === 4")
    window.page.get_by_label("Charts show").select_option(label=lone.title)
    window.page.wait_for_function(f"{points} === 2")
    assert window.page.get_by_label("Run A").locator("option").count() == 8  # no run twice
    window.through()
    window.done()


@pytest.mark.slow
@SIZES
def test_where_a_beats_b(browser: Any, report: Path, tables: list[Table], width: int) -> None:
    (found,), _ = asked(tables)
    window = Opened(browser, report, width)
    window.page.get_by_label("Run A").select_option("6")
    window.page.get_by_label("Run B").select_option("0")
    for way, total in (("t2i", 2 * TEST), ("i2t", TEST)):
        window.page.get_by_label("Queries").select_option(way)
        won, lost = found.wins(way)[6][0], found.wins(way)[0][6]
        told = [int(number) for number in window.text(".score b")]
        assert told == [total, won, lost, total - won - lost]
        window.page.get_by_label("Show").select_option("a")
        (gallery,) = stored(
            Path(window.page.url.removeprefix("file://")).read_text(encoding="utf-8"), "galleries"
        )
        ids = [query["id"] for query in gallery["queries"][way]]
        beaten = [q for q in ids if found.first[way][6, q] < found.first[way][0, q]]
        assert window.text("#gallery [role=status]") == [f"{len(beaten)} of {len(ids)} queries in this page"]
        marked = [int(re.findall(r"\d+", text)[0]) for text in window.text(".card .meta")]
        assert marked == beaten[: len(marked)]
        for card, query in zip(window.page.locator(".card").all(), marked, strict=True):
            right = card.locator("ol").first.locator("li.right .mark").all_text_contents()
            assert int(right[0].split()[0]) == found.first[way][6, query] + 1
        window.page.get_by_label("Show").select_option("all")
    window.page.get_by_label("Find").fill("number 0")
    assert window.text("#gallery [role=status]") == ["0 of 12 queries in this page"]
    window.done()


@pytest.mark.slow
def test_the_keyboard_alone_reaches_and_works_everything(browser: Any, report: Path) -> None:
    window = Opened(browser, report)
    met: list[str] = []
    focused = """(() => {
        const at = document.activeElement, label = at.labels && at.labels[0];
        const told = at.getAttribute("aria-label") || at.dataset.signal;
        const name = told || (label || at).firstChild.textContent;
        return [name || label.textContent, getComputedStyle(at).outlineStyle !== "none"];
    })()"""
    for _ in range(60):
        window.page.keyboard.press("Tab")
        name, visible = window.page.evaluate(focused)
        met.append(name)
        assert visible, name
        if name == "sort by rSum":
            window.page.keyboard.press("Enter")
        if name == "snll":
            window.page.keyboard.press("Space")
            assert not window.page.is_checked("input[value=snll]")
            window.page.keyboard.press("Space")
        if name == "metric":
            window.page.keyboard.press("ArrowUp")
            assert window.page.eval_on_selector("[data-signal=metric]", "(menu) => menu.value") == '"t2i_r10"'
        if name == "Show more":
            window.page.keyboard.press("Enter")
            break
    for wanted in ("Skip to the contents", "Gallery", "noise_training", "Run A", "Find", "Show more"):
        assert wanted in met
    assert window.page.get_attribute("th:has(button[aria-label='sort by rSum'])", "aria-sort") == "descending"
    assert window.page.locator(".card").count() == 12
    assert window.page.evaluate("document.activeElement.className").startswith("card")
    window.done()


@pytest.mark.slow
def test_dark_mode_has_contrast(browser: Any, report: Path, tmp_path: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        window = Opened(browser, report, scheme=scheme)
        names = ("--page", "--paper", "--ink", "--soft", "--accent", "--right", "--series-0", "--series-5")
        read = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
        seen[scheme] = colours = {name: window.page.evaluate(read, name) for name in names}
        for name in ("--ink", "--soft", "--accent", "--right"):
            for ground in ("--paper", "--page"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (scheme, name)
        for name in ("--series-0", "--series-5"):
            assert contrast(colours[name], colours["--paper"]) >= 3, (scheme, name)
        window.page.screenshot(path=tmp_path / f"{scheme}.png")
        window.done()
    light, dark = (np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("L")) for scheme in seen)
    assert light.mean() > 200
    assert dark.mean() < 60


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.1 between two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
