"""The HTML report in a real browser, where there is one."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile_report
import numpy as np
import pytest
from hostile_report import HOSTILE, TEST, stored
from PIL import Image
from processes import CHROMIUM, PATIENCE

from itmfeat.report.html import page
from itmfeat.report.html.hits import asked
from itmfeat.report.table import Table

# Fixtures, once for each of the modules.
pictures, runs = hostile_report.pictures, hostile_report.runs
tables, report = hostile_report.tables, hostile_report.report

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
