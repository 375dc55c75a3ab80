r"""Tables for a paper: a float each, with its notes below.

Pure ASCII, so that pdflatex, XeLaTeX and LuaLaTeX print the same. A table that is wider than the line is made
smaller by TeX itself, which alone knows the width.
"""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from itmfeat.report.table import HEADINGS, Cell, Row, Table, percent

MARKS = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")  # by place
WAYS = {"i2t": "Image to text", "t2i": "Text to image"}
METHOD_WIDTH = 30  # characters; a longer name goes on in another line
PREAMBLE = r"% In the preamble: \usepackage{booktabs,multirow,graphicx}"

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": "{`}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "†": r"$^\dagger$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "\N{NO-BREAK SPACE}": "~",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "œ": r"\oe{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
# Combining characters and the commands that set them over (or under) a letter.
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c",
}  # fmt: skip
GREEK = {  # those that look like Latin letters have no command
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi",
    "ρ": "rho", "ς": "varsigma", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi",
    "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip


def text(tables: Sequence[Table]) -> str:
    """A `table` environment for each; bold is best, underlined second."""
    return "\n".join([PREAMBLE, *(_float(table) for table in tables)])


def _float(table: Table) -> str:
    """One table with caption, grid and notes."""
    notes = [rf"  {escaped(note)}\par" for note in table.notes]
    caption = (
        f"{table.title}. Recall in percent; the best of each noise ratio is bold, the second underlined."
    )
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering\small",
            r"  \setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{6pt}",
            rf"  \caption{{{escaped(caption)}}}",
            rf"  \label{{tab:{_label(table)}}}",
            r"  \sbox0{%",
            *_grid(table),
            r"  }%",
            r"  \ifdim\wd0>\linewidth \resizebox{\linewidth}{!}{\usebox0}\else \usebox0\fi",
            r"  \par\medskip",
            r"  \begin{minipage}{\linewidth}\footnotesize\raggedright",
            *notes,
            r"  \end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def _grid(table: Table) -> list[str]:
    """The tabular: a mean and its deviation are two columns, so that all points stand below each other."""
    number = "r@{}l" if table.repeated else "r"
    seeds = "r" if table.repeated else ""
    lines = [rf"  \begin{{tabular}}{{@{{}}cl*{{{len(HEADINGS)}}}{{{number}}}{seeds}@{{}}}}", r"  \toprule"]
    lines += _head(table.repeated)
    for block in table.blocks:
        lines.append(r"  \midrule")
        height = sum(len(_method_lines(row)) for row in block)
        for first, row in enumerate(block):
            noise = "" if first else rf"\multirow{{{height}}}{{*}}{{{percent(row.noise)}}}"
            lines.append(_line([noise, _method(row), *_cells(row, table.repeated)]))
    return [*lines, r"  \bottomrule", r"  \end{tabular}"]


def _head(repeated: bool) -> list[str]:
    """The directions above their recalls, then a heading for each column."""
    each = 2 if repeated else 1
    ways, rules, column = ["", ""], [], 3
    for way in dict.fromkeys(way for way, _ in HEADINGS):
        width = each * sum(other == way for other, _ in HEADINGS)
        ways.append(rf"\multicolumn{{{width}}}{{c}}{{{WAYS[way]}}}" if way else "&" * (each - 1))
        rules += [rf"\cmidrule(lr){{{column}-{column + width - 1}}}"] if way else []
        column += width
    names = [rf"\multicolumn{{{each}}}{{c}}{{{what}}}" for _, what in HEADINGS]
    more = ["Seeds"] if repeated else []
    return [
        _line([*ways, *([""] if repeated else [])]),
        f"  {''.join(rules)}",
        _line([r"Noise (\%)", "Method", *names, *more]),
    ]


def _cells(row: Row, repeated: bool) -> list[str]:
    """The numbers of one row."""
    if not repeated:
        return [_mean(cell) for cell in row.cells]
    pairs = [part for cell in row.cells for part in (_mean(cell), _deviation(cell))]
    return [*pairs, row.seeds]


def _mean(cell: Cell) -> str:
    return MARKS[cell.place].format(f"{cell.mean:.1f}")


def _deviation(cell: Cell) -> str:
    return "" if cell.std is None else rf"\scriptsize\,$\pm${cell.std:.1f}"


def _method(row: Row) -> str:
    """The name, on several lines where it is long."""
    lines = [escaped(line) for line in _method_lines(row)]
    if len(lines) == 1:
        return lines[0]
    # The braces keep "[" or "*" at the start of a line from being an argument of the line break.
    return r"\begin{tabular}[t]{@{}l@{}}" + r"\\{} ".join(lines) + r"\end{tabular}"


def _method_lines(row: Row) -> list[str]:
    # Hyphens are no place to break: names of backbones and heads are full of them.
    return textwrap.wrap(row.label, METHOD_WIDTH, break_on_hyphens=False, subsequent_indent=" ") or [""]


def _line(cells: Sequence[str]) -> str:
    return f"  {' & '.join(cells)} \\\\"


def _label(table: Table) -> str:
    """What `\\ref` may name: letters, digits and hyphens."""
    words = f"{table.dataset}-{table.split}-{table.protocol}-{table.noise_protocol}"
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def escaped(words: str) -> str:
    """Words as LaTeX prints them, in ASCII; what it has no command for is told by its code point."""
    composed = unicodedata.normalize("NFC", " ".join(words.split()))
    printed = "".join(_character(character) for character in composed)
    return re.sub("-(?=-)", "-{}", printed)  # two in a row would be a dash


def _character(character: str) -> str:
    """One character."""
    if character in SPECIAL:
        return SPECIAL[character]
    if character in "&%$#_{}":
        return f"\\{character}"
    if character.isascii() and character.isprintable():
        return character
    if character in GREEK:
        return rf"$\{GREEK[character]}$"
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return rf"\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return rf"[U+{ord(character):04X}]"
