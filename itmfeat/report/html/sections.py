"""The sections of the page, and the controls that filter them."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from itmfeat.report.html import charts, measures
from itmfeat.report.html.grid import grid
from itmfeat.report.table import HEADINGS, METRICS, Table

Section = tuple[str, str, str]
"""Name, title, contents."""


def made(tables: Sequence[Table], drawn: dict[str, Any], gallery: bool) -> list[Section]:
    """The sections that have something to show, in order."""
    found = [
        ("noise", "Recall against noise", _noise()),
        ("tables", "Results", _tables(tables)),
        ("training", "Training", _training(tables, drawn)),
        ("separation", "Clean and noisy pairs", _separation(tables, drawn)),
        ("cost", "Cost", _cost(tables) if "cost" in drawn else ""),
        ("gallery", "Gallery", "<div id='showcase'></div>" if gallery else ""),
    ]
    return [each for each in found if each[2]]


def section(name: str, title: str, contents: str) -> str:
    """A section under its heading."""
    head = f"<h2 id='{name}-title'>{title}</h2>"
    return f"<section id='{name}' aria-labelledby='{name}-title'>{head}{contents}</section>"


def controls(tables: Sequence[Table]) -> str:
    """What filters the whole page: the table that the charts show, where there are several, and the methods.

    The boxes of the methods are the legend of all charts, too.
    """
    several = [(place, table.title) for place, table in enumerate(tables)]
    choice = _choice("table", "Charts show", several, 0) if len(tables) > 1 else ""
    boxes = "".join(_box(name, place) for place, name in enumerate(measures.methods(tables)))
    return f"{choice}<fieldset><legend>Methods</legend>{boxes}</fieldset>"


def _box(method: str, place: int) -> str:
    """A checkbox with the line and mark that a method has in the charts."""
    dash = " ".join(map(str, charts.DASHES[place % len(charts.DASHES)]))
    colour = f"var(--series-{place % len(charts.COLOURS)})"
    mark = charts.MARKS[place % len(charts.MARKS)]
    name = escape(method)
    swatch = (
        "<svg width='34' height='14' viewBox='0 0 34 14' aria-hidden='true'>"
        f"<path d='M1 7H33' stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'/>"
        f"<path d='{SHAPES[mark]}' fill='{colour}'/></svg>"
    )
    box = f"<input type='checkbox' name='method' value='{name}' checked>"
    return f"<label class='key'>{box}{swatch}{name}</label>"


# The marks of the charts around (17, 7), as paths.
SHAPES = {
    "circle": "M12.5 7a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "square": "M13 3h8v8h-8Z",
    "triangle-up": "M17 2.5L22 11.5H12Z",
    "diamond": "M17 1.5L22 7L17 12.5L12 7Z",
    "cross": "M15.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "triangle-down": "M17 11.5L12 2.5H22Z",
    "triangle-left": "M12.5 7L21.5 2V12Z",
    "triangle-right": "M21.5 7L12.5 2V12Z",
}


def _choice(signal: str, label: str, options: Iterable[tuple[Any, str]], chosen: Any) -> str:
    """A menu that sets a parameter of charts."""
    listed = []
    for value, name in options:
        selected = " selected" if value == chosen else ""
        listed.append(f"<option value='{escape(json.dumps(value))}'{selected}>{escape(name)}</option>")
    menu = f"<select data-signal='{signal}'>{''.join(listed)}</select>"
    return f"<label class='choice'><span>{label}</span>{menu}</label>"


def _hint(text: str) -> str:
    return f"<p class='hint'>{text}</p>"


def _tools(*parts: str) -> str:
    """A line of menus, legends and hints."""
    return f"<div class='tools'>{''.join(parts)}</div>"


def _chart(name: str, title: str = "", method: str = "") -> str:
    """A place for a chart; one of a single method goes when the method is not shown."""
    head = f"<h4>{escape(title)}</h4>" if title else ""
    of = f" data-method='{escape(method)}'" if method else ""
    return f"<div class='panel'{of}>{head}<div class='chart' data-chart='{name}'></div></div>"


def _noise() -> str:
    ways = {"i2t": "image → text ", "t2i": "text → image ", "": ""}
    names = [ways[way] + what for way, what in HEADINGS]
    menu = _choice("metric", "Metric", zip(METRICS, names, strict=True), "rsum")
    hint = _hint("Mean over seeds; the band is one standard deviation. Point at a mark for its value.")
    return _tools(menu, hint) + _chart("noise")


def _tables(tables: Sequence[Table]) -> str:
    hint = _hint(
        "Recalls in percent. Of each noise ratio <b>bold</b> is best and <u>underlined</u> second. "
        "A heading sorts by its column."
    )
    return hint + "".join(grid(table, place) for place, table in enumerate(tables))


def _training(tables: Sequence[Table], drawn: dict[str, Any]) -> str:
    if "rsum" not in drawn:
        return ""
    ratios = measures.ratios(tables)
    hint = _hint("Each method has a scale of its own: losses do not compare.")
    return (
        "<h3>Validation rSum after each epoch</h3>"
        f"{_tools(_noise_choice('noise_training', ratios))}{_chart('rsum')}"
        "<h3>Training loss after each epoch</h3>"
        f"{_tools(_shades(ratios), hint)}{_multiples(tables, drawn, 'loss')}"
    )


def _separation(tables: Sequence[Table], drawn: dict[str, Any]) -> str:
    if "auc" not in drawn:
        return ""
    menu = _noise_choice("noise_separation", [ratio for ratio in measures.ratios(tables) if ratio])
    hint = _hint(
        "The true pairs are known, so every epoch tells how well the match of a training pair (1 where the "
        "nets are sure that its caption and image belong together) separates clean from noisy ones: an AUC "
        "of 1 is perfect, 0.5 is chance."
    )
    panels = _multiples(tables, drawn, "match")
    kinds = "<ul class='swatches'><li><i class='clean'></i>clean</li><li><i class='noisy'></i>noisy</li></ul>"
    matched = (
        "<h3>Match of clean and of noisy pairs in the last epoch</h3>"
        f"{_tools(kinds, _hint('Shares of the clean and of the noisy pairs.'))}{panels}"
    )
    found = f"{_tools(menu, hint)}<h3>AUC after each epoch</h3>{_chart('auc')}"
    return found + (matched if panels else "")


def _cost(tables: Sequence[Table]) -> str:
    stacks = [str(size) for size in measures.stacks(tables) if size > 1]
    told = (
        f"Runs that trained in a stack of {' or '.join(stacks)} count with an equal share of it, so methods "
        "that trained in one stack do not differ here."
        if stacks
        else "Each run trained alone."
    )
    return _hint(f"Seconds of training a run, mean over noise ratios and seeds. {told}") + _chart("cost")


def _multiples(tables: Sequence[Table], drawn: dict[str, Any], kind: str) -> str:
    """A small chart for each method that has one."""
    named = enumerate(measures.methods(tables))
    panels = [_chart(f"{kind}-{place}", name, name) for place, name in named if f"{kind}-{place}" in drawn]
    return f"<div class='multiples'>{''.join(panels)}</div>" if panels else ""


def _noise_choice(signal: str, ratios: Sequence[float]) -> str:
    return _choice(signal, "Noise", [(ratio, f"{ratio:g} %") for ratio in ratios], max(ratios))


def _shades(ratios: Sequence[float]) -> str:
    """The legend of charts with a line a noise ratio."""
    listed = "".join(
        f"<li><i style='background:var(--step-{shade})'></i>{ratio:g} % noise</li>"
        for shade, ratio in zip(charts.shades(len(ratios)), ratios, strict=True)
    )
    return f"<ul class='swatches'>{listed}</ul>"
