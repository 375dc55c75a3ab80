"""What a format sees: tables of rows of cells."""

from dataclasses import dataclass
from itertools import groupby

from itmfeat.report.collect import Run
from itmfeat.report.published import METRICS, Published

__all__ = ["HEADINGS", "METRICS", "Cell", "Row", "Table", "percent"]

# `METRICS` for people: which way, and what.
HEADINGS = (
    ("i2t", "R@1"),
    ("i2t", "R@5"),
    ("i2t", "R@10"),
    ("t2i", "R@1"),
    ("t2i", "R@5"),
    ("t2i", "R@10"),
    ("", "rSum"),
)


@dataclass(frozen=True)
class Cell:
    """One number: its mean, its standard deviation over more than one run, and its place.

    `place` is 1 for the best of a noise block, 2 for the second, 0 for others.
    """

    mean: float
    std: float | None
    place: int = 0

    @property
    def text(self) -> str:
        """With one decimal."""
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ±{self.std:.1f}"


@dataclass(frozen=True)
class Row:
    """One method at one noise ratio; `cells` in the order of `METRICS`.

    Either the mean over the seeds of `runs`, or, without any, `published` by others.
    """

    noise: float
    method: str
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    published: Published | None = None

    @property
    def label(self) -> str:
        """The method, with a dagger where it was not run here."""
        return f"{self.method}†" if self.published else self.method

    @property
    def seeds(self) -> str:
        """How many runs the numbers are the mean of; empty where that is not known."""
        return str(len(self.runs)) if self.runs else ""


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one dataset, split and protocol, one way to draw noise."""

    dataset: str
    protocol: str
    split: str
    noise_protocol: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the table is about."""
        noise = f"{self.noise_protocol} noise" if any(row.noise for row in self.rows) else "no noise"
        return f"{self.dataset}, {self.split} split, protocol {self.protocol}, {noise}"

    @property
    def blocks(self) -> list[tuple[Row, ...]]:
        """The rows of each noise ratio."""
        return [tuple(rows) for _, rows in groupby(self.rows, key=lambda row: row.noise)]

    @property
    def repeated(self) -> bool:
        """Whether any row has more than one run."""
        return any(len(row.runs) > 1 for row in self.rows)


def percent(ratio: float) -> str:
    """A noise ratio as people write it."""
    return f"{100 * ratio:g}"
