"""The charts, by Altair: as Vega-Lite for the page, and as a static figure.

On the page all charts share one legend, which is HTML and filters (`shown`); colours are variables of the
style sheet, so that they follow the reader's light or dark mode. Every method has a colour, a dash and a mark
of its own, so that no chart needs colour to be read.
"""

import math
from collections.abc import Sequence
from typing import Any

from itmfeat.errors import MissingPackageError
from itmfeat.noise.separation import LOWEST
from itmfeat.report.html import measures
from itmfeat.report.table import Table

DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [5, 2])
MARKS = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-left",
    "triangle-right",
)
# Six colours that also those can tell who see few, each at least 3:1 on the page; page.css has both modes.
COLOURS = ("#0072b2", "#c44e00", "#00805e", "#a8457f", "#8f6400", "#4a4f57")
WIDE = 8  # times: values that differ more stand on a logarithmic scale
STEPS = 5  # shades in page.css for noise ratios, from pale to deep


def library() -> Any:
    """Altair, with vl-convert beside it."""
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("charts need Altair and vl-convert: pip install 'itmfeat[html]'") from error
    return altair


def bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, to stand in a page; it loads nothing itself."""
    import vl_convert

    version = ".".join(library().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version))
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def specifications(tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """Each chart that the runs have something to show in, by name; each is as wide as its place."""
    names = measures.methods(tables)
    logged = measures.epochs(tables)
    of = {
        name: [record for record in logged if record["measure"] == name] for name in ("rsum", "loss", "auc")
    }
    charts = {"noise": _against_noise(measures.scores(tables), names)}
    if of["rsum"]:
        charts["rsum"] = _curves(of["rsum"], names, "rSum", "noise_training")
    for place, name in enumerate(names):
        own = [record for record in of["loss"] if record["method"] == name]
        if own:
            charts[f"loss-{place}"] = _loss(own, measures.ratios(tables))
    if of["auc"]:
        charts["auc"] = _curves(of["auc"], names, "AUC", "noise_separation")
    matched = measures.matches(tables)
    for place, name in enumerate(names):
        own = [record for record in matched if record["method"] == name]
        if own:
            charts[f"match-{place}"] = _histogram(own)
    cost = measures.costs(tables)
    if cost:
        charts["cost"] = _cost(cost, names)
    return {name: _plain(chart) for name, chart in charts.items()}


def figure(tables: Sequence[Table]) -> str:
    """rSum against the noise ratio as an SVG, a line a method with a band of one deviation over its seeds.

    A panel for each table, one below the other.
    """
    alt = library()
    names = measures.methods(tables)
    records = [record for record in measures.scores(tables) if record["metric"] == "rsum"]
    panels = []
    for place, table in enumerate(tables):
        own = [record for record in records if record["table"] == place]
        layers = _lines(own, names, _noise_axis(own), "rSum", list(COLOURS), legend=True)
        panels.append(layers.properties(width=360, height=240, title=table.title))
    chart = alt.vconcat(*panels).configure_view(stroke=None).configure_title(fontSize=12, fontWeight="normal")
    chart = chart.configure_axis(gridColor="#e4e6ea", titleFontWeight="normal").configure_axisX(grid=False)
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[]))


def shades(count: int) -> list[int]:
    """A shade of the style sheet for each of so many noise ratios, the deepest for the last."""
    return [place * (STEPS - 1) // max(1, count - 1) for place in range(count)]


# --- one function a chart ---


def _against_noise(records: list[measures.Record], names: list[str]) -> Any:
    """A metric against the noise ratio; which metric is the parameter `metric`."""
    chart = _lines(records, names, _noise_axis(records), None, _variables("series", len(COLOURS)))
    return _filtered(chart, "datum.metric == metric", metric="rsum").properties(
        height=340, description="A metric against the noise ratio, a line a method, bands over seeds."
    )


def _curves(records: list[measures.Record], names: list[str], title: str, noise: str) -> Any:
    """A measure of each epoch; the noise ratio is the parameter `noise`."""
    chart = _lines(records, names, _epoch_axis(records), None, _variables("series", len(COLOURS)), small=True)
    ratio = max(record["noise"] for record in records)
    return _filtered(chart, f"datum.noise == {noise}", **{noise: ratio}).properties(
        height=260, description=f"{title} after each epoch, a line a method, bands over seeds."
    )


def _loss(records: list[measures.Record], ratios: list[float]) -> Any:
    """The training loss of one method, a line a noise ratio."""
    alt = library()
    colour = alt.Color(
        "noise:O",
        legend=None,
        scale=alt.Scale(domain=ratios, range=[f"var(--step-{shade})" for shade in shades(len(ratios))]),
    )
    dash = alt.StrokeDash(
        "noise:O", legend=None, scale=alt.Scale(domain=ratios, range=_cycle(DASHES, ratios))
    )
    base = alt.Chart(alt.Data(values=records)).encode(
        x=_epoch_axis(records),
        y=_loss_axis([record["mean"] for record in records]),
        color=colour,
        tooltip=_tooltip("epoch:Q", "loss"),
    )
    return _filtered(
        base.mark_line().encode(strokeDash=dash) + base.mark_point(filled=True, size=28)
    ).properties(height=170, description="Training loss after each epoch, a line a noise ratio.")


def _histogram(records: list[measures.Record]) -> Any:
    """How well one method matched its clean and its noisy pairs, as shares of each kind."""
    alt = library()
    bars = alt.Chart(alt.Data(values=records)).mark_rect(clip=True)
    ratio = max(record["noise"] for record in records)
    decades = alt.Axis(
        values=[10.0**power for power in range(LOWEST, 1, 2)],
        labelExpr="datum.value < 0.01 ? format(datum.value, '.0e') : datum.value",
    )
    chart = bars.encode(
        x=alt.X(
            "match:Q", title="match", scale=alt.Scale(type="log", domain=[10.0**LOWEST, 1]), axis=decades
        ),
        x2="end:Q",
        y=alt.Y("share:Q", title="share", axis=alt.Axis(format="~%", tickCount=4)),
        y2=alt.datum(0),
        color=alt.Color(
            "pairs:N",
            legend=None,
            scale=alt.Scale(domain=["clean", "noisy"], range=["var(--clean)", "var(--noisy)"]),
        ),
        # Clean pairs are filled and noisy ones an outline, so that both can be seen where they meet.
        fillOpacity=alt.condition("datum.pairs == 'clean'", alt.value(0.55), alt.value(0)),
        stroke=alt.condition("datum.pairs == 'clean'", alt.value(None), alt.value("var(--noisy)")),
        tooltip=[
            alt.Tooltip("pairs:N", title="pairs"),
            alt.Tooltip("match:Q", format=".2~g", title="match from"),
            alt.Tooltip("end:Q", format=".2~g", title="to"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    return _filtered(chart, "datum.noise == noise_separation", noise_separation=ratio).properties(
        height=170, description="How well clean and noisy training pairs matched in the last epoch."
    )


def _cost(records: list[measures.Record], names: list[str]) -> Any:
    """Seconds of training a run. Names stand above their bars, where a phone has room for them."""
    alt = library()
    base = alt.Chart(alt.Data(values=records)).encode(
        y=alt.Y("method:N", axis=None, sort=names),
        tooltip=[tip for tip in _tooltip("", "seconds", ".1f") if tip.shorthand != "noise:Q"],
    )
    axis = alt.Axis(tickCount=6)
    seconds = alt.X("mean:Q", title="seconds a run", scale=alt.Scale(zero=True), axis=axis)
    colour = alt.Color("method:N", legend=None, scale=_scale(names, _variables("series", len(COLOURS))))
    bars = base.mark_bar(height=12, yOffset=8, cornerRadiusEnd=2).encode(x=seconds, color=colour)
    ends = base.mark_rule(yOffset=8, color="var(--ink)").encode(x="low:Q", x2="high:Q")
    named = base.transform_calculate(
        label="datum.method + ': ' + format(datum.mean, ',.1f') + ' s' + "
        "(datum.runs > 1 ? ' ±' + format(datum.std, ',.1f') : '')"
    )
    labels = named.mark_text(align="left", baseline="bottom", fontSize=13, dy=1).encode(
        x=alt.value(0), text="label:N"
    )
    return _filtered(bars + ends + labels).properties(
        height=46 * len({record["method"] for record in records}),
        description="Seconds of training a run took, a bar a method.",
    )


# --- what they share ---


def _lines(
    records: list[measures.Record],
    names: list[str],
    x: Any,
    title: str | None,
    colours: list[str],
    small: bool = False,
    legend: bool = False,
) -> Any:
    """Bands of one deviation, lines and marks of `mean`, a series a method."""
    alt = library()
    key = (
        alt.Legend(title=None, orient="bottom", columns=2, labelLimit=300, symbolOpacity=1)
        if legend
        else None
    )
    y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=records)).encode(
        x=x, color=alt.Color("method:N", legend=key, scale=_scale(names, colours))
    )
    dash = alt.StrokeDash("method:N", legend=key, scale=_scale(names, DASHES))
    shape = alt.Shape("method:N", legend=key, scale=_scale(names, MARKS))
    bands = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q")
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash)
    points = base.mark_point(filled=True, size=44 if small else 80, opacity=1).encode(
        y=y, shape=shape, tooltip=_tooltip(x.shorthand, title or "value")
    )
    return bands + lines + points


def _filtered(chart: Any, *tests: str, **parameters: Any) -> Any:
    """The chart with what the reader may choose: the table, the methods, and `parameters`."""
    alt = library()
    chosen = {"table": 0, "shown": None} | parameters
    for test in ("datum.table == table", "shown == null || indexof(shown, datum.method) >= 0", *tests):
        chart = chart.transform_filter(test)
    given = [alt.param(name=name, value=value) for name, value in chosen.items()]
    return chart.add_params(*given).properties(width="container")


def _noise_axis(records: list[measures.Record]) -> Any:
    alt = library()
    ratios = sorted({record["noise"] for record in records})
    axis = alt.Axis(values=ratios, labelOverlap=True)
    return alt.X("noise:Q", title="noise ratio (%)", axis=axis, scale=alt.Scale(nice=False, padding=14))


def _epoch_axis(records: list[measures.Record]) -> Any:
    alt = library()
    last = max(record["epoch"] for record in records)
    axis = alt.Axis(tickMinStep=1, format="d", tickCount=min(last, 8))
    return alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(zero=False, nice=False, padding=10))


def _loss_axis(values: list[float]) -> Any:
    """Logarithmic, by decades, where the losses of the first epochs are many times those of the last."""
    alt = library()
    if not 0 < WIDE * min(values) < max(values):
        return alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axis = alt.Axis(values=[10.0**power for power in range(first, last + 1)], format="~g")
    return alt.Y("mean:Q", title=None, scale=alt.Scale(type="log"), axis=axis)


def _tooltip(x: str, title: str, form: str = ".4~g") -> list[Any]:
    alt = library()
    numbers = [alt.Tooltip("mean:Q", title=title, format=form), alt.Tooltip("std:Q", title="±", format=form)]
    return [
        alt.Tooltip("method:N"),
        alt.Tooltip("noise:Q", title="noise (%)"),
        *([alt.Tooltip(x)] if x == "epoch:Q" else []),
        *numbers,
        alt.Tooltip("runs:Q"),
    ]


def _scale(names: list[str], values: Sequence[Any]) -> Any:
    return library().Scale(domain=names, range=_cycle(values, names))


def _cycle(values: Sequence[Any], of: Sequence[Any]) -> list[Any]:
    """As many of the values as there are in `of`, from the start again where they end."""
    return [values[place % len(values)] for place in range(len(of))]


def _variables(name: str, count: int) -> list[str]:
    """Colours that the style sheet knows by number."""
    return [f"var(--{name}-{place})" for place in range(count)]


def _plain(chart: Any) -> dict[str, Any]:
    """The chart as Vega-Lite, without the address of its schema."""
    found: dict[str, Any] = chart.to_dict(validate=False)  # the parts are, when they are made
    found.pop("$schema", None)
    found.pop("config", None)
    return found
