"""Tables as HTML: the same rows, marks and notes as in the other formats; the page's script sorts them."""

from html import escape

from itmfeat.report.table import HEADINGS, Cell, Row, Table, percent

WAYS = {"i2t": "image → text", "t2i": "text → image", "": ""}
MARKS = ("", " class='best'", " class='second'")  # by place


def grid(table: Table, place: int) -> str:
    """A table in a box of its own, in which it scrolls where it is wider than the screen, and its notes."""
    rows = "\n".join(_row(row, table.repeated) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = escape(table.title)
    return (
        f"<h3 id='table-{place}'>{title}</h3>"
        f"<div class='scroll' role='region' aria-labelledby='table-{place}' tabindex='0'>"
        f"<table class='sortable' aria-labelledby='table-{place}'>"
        f"<thead>{_heads(table.repeated)}</thead><tbody>\n{rows}\n</tbody></table></div>"
        f"<ul class='notes'>{notes}</ul>"
    )


def _heads(repeated: bool) -> str:
    """Two lines of headings: directions, and a button to sort by each column."""
    groups = "".join(
        f"<th colspan='3' scope='colgroup' class='way'>{WAYS[way]}</th>" for way in ("i2t", "t2i")
    )
    names = ["Noise (%)", "Method", *(f"{way} {what}".strip() for way, what in HEADINGS)]
    names += ["Seeds"] if repeated else []
    shown = ["Noise (%)", "Method", *(what for _, what in HEADINGS), "Seeds"]
    buttons = "".join(
        f"<th scope='col'{_kind(name)}>"
        f"<button type='button' aria-label='sort by {name}'>{label}</button></th>"
        for name, label in zip(names, shown, strict=False)
    )
    return f"<tr><td colspan='2'></td>{groups}<td colspan='{len(names) - 8}'></td></tr><tr>{buttons}</tr>"


def _kind(name: str) -> str:
    """Methods are words, all other columns numbers."""
    return " class='word'" if name == "Method" else ""


def _row(row: Row, repeated: bool) -> str:
    """One row, with unrounded numbers to sort by."""
    method = escape(row.label)
    cells = "".join(_cell(cell, repeated) for cell in row.cells)
    seeds = f"<td data-value='{len(row.runs)}'>{row.seeds}</td>" if repeated else ""
    return (
        f"<tr data-method='{method}'><td data-value='{row.noise}'>{percent(row.noise)}</td>"
        f"<th scope='row' data-value='{method}'>{method}</th>{cells}{seeds}</tr>"
    )


def _cell(cell: Cell, repeated: bool) -> str:
    """A number; bold is the best of its noise ratio, underlined the second.

    Where other rows have a deviation, its place stays empty, so that the numbers of a column stand in line.
    """
    told = "" if cell.std is None else f"±{cell.std:.1f}"
    deviation = f" <small>{told}</small>" if repeated else ""
    return f"<td data-value='{cell.mean}'{MARKS[cell.place]}><span>{cell.mean:.1f}</span>{deviation}</td>"
