"""Rows from papers, to stand beside ours: a CSV file of published numbers, checked line by line.

    method,dataset,protocol,noise_protocol,noise_ratio,i2t_r1,...,t2i_r10,rsum,source,note

The recalls are in percent, of the test split. `rsum` and `note` may be empty or left out; `note` says what a
reader has to know, as "ensemble of two models". `noise_protocol` may be empty where the ratio is 0.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from itmfeat.errors import DataError, unknown

METRICS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
COLUMNS = ("method", "dataset", "protocol", "noise_protocol", "noise_ratio", *METRICS, "source", "note")
OPTIONAL = ("rsum", "note")
# Seven numbers, each rounded to one decimal, may be apart by so much; a little more for binary fractions.
ROUNDING = 7 * 0.05 + 1e-6


@dataclass(frozen=True)
class Published:
    """One line of a file of published numbers; `metrics` are the six recalls and their sum."""

    file: Path
    line: int
    method: str
    dataset: str
    protocol: str
    noise_protocol: str
    noise: float
    metrics: tuple[float, ...]
    source: str
    note: str

    def belongs(self, key: tuple[str, str, str, str], noise: float) -> bool:
        """Whether it joins a block of a table: (dataset, protocol, split, noise protocol) and noise ratio.

        Without noise it does not matter how noise would be drawn.
        """
        *where, noise_protocol = key
        same = [self.dataset, self.protocol, "test"] == where and self.noise == noise
        return same and (noise == 0 or self.noise_protocol == noise_protocol)

    @property
    def cited(self) -> str:
        """Its source, with the note."""
        return f"{self.source}; {self.note}" if self.note else self.source

    @property
    def setting(self) -> str:
        """What it is compared under, in words."""
        noise = f"{self.noise_protocol} noise" if self.noise else "no noise"
        return f"{self.dataset}, protocol {self.protocol}, {noise}"


def read_published(files: Sequence[Path]) -> list[Published]:
    """All lines of the files, in their order."""
    return [row for file in dict.fromkeys(files) for row in _read(file)]


def _read(file: Path) -> Iterator[Published]:
    """The lines of one file; an empty one is skipped, one that says the same as another is an error."""
    seen: dict[tuple[object, ...], int] = {}
    lines = _lines(file)
    _, columns = next(lines, (1, []))
    _check_columns(file, columns)
    for line, values in lines:
        place = f"{file}, line {line}"
        if len(values) != len(columns):
            raise DataError(f"{place} has {len(values)} fields, but there are {len(columns)} columns")
        row = _row(file, line, place, dict(zip(columns, values, strict=True)))
        same = (row.method, row.setting, row.noise, row.source)
        if same in seen:
            raise DataError(f"{place} repeats line {seen[same]}: the same method, setting and source")
        seen[same] = line
        yield row


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers and stripped fields of the lines that are not empty."""
    try:
        # Spreadsheets put a byte order mark in front.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            try:
                for values in reader:
                    fields = [" ".join(value.split()) for value in values]
                    if any(fields):
                        yield reader.line_num, fields
            except csv.Error as error:
                raise DataError(f"{file}, line {reader.line_num} is no line of a CSV file: {error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not encoded in UTF-8; save it so") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def _check_columns(file: Path, columns: list[str]) -> None:
    """Known columns, each once, and those that are needed."""
    for name in columns:
        if name not in COLUMNS:
            raise DataError(f"{file}, line 1: {unknown('column', name, [*COLUMNS])}, separated by commas")
        if columns.count(name) > 1:
            raise DataError(f"{file}, line 1 names the column {name} twice")
    if missing := [name for name in COLUMNS if name not in (*columns, *OPTIONAL)]:
        raise DataError(f"{file}, line 1 lacks {', '.join(missing)}; the columns are {', '.join(COLUMNS)}")


def _row(file: Path, line: int, place: str, values: dict[str, str]) -> Published:
    """One line, checked."""
    ratio = _number(place, "noise_ratio", values["noise_ratio"])
    if not 0 <= ratio < 1:
        raise DataError(f"{place}: noise_ratio {ratio:g} is not in [0, 1); 20 % is written 0.2")
    spare = (*OPTIONAL, "noise_protocol") if ratio == 0 else OPTIONAL
    for name, value in values.items():
        if not value and name not in spare:
            raise DataError(f"{place} has no {name}")
        if not value.isprintable():
            raise DataError(f"{place}: {name} holds a character that cannot be printed")
    return Published(
        file,
        line,
        values["method"],
        values["dataset"],
        values["protocol"],
        values["noise_protocol"],
        ratio,
        _metrics(place, values),
        values["source"],
        values.get("note", ""),
    )


def _metrics(place: str, values: dict[str, str]) -> tuple[float, ...]:
    """The six recalls and their sum: that of the paper if it is given and right, else ours."""
    recalls = [_number(place, name, values[name]) for name in METRICS[:6]]
    for name, value in zip(METRICS, recalls, strict=False):
        if not 0 <= value <= 100:
            raise DataError(f"{place}: {name} {value:g} is no percentage")
    if recalls != [*sorted(recalls[:3]), *sorted(recalls[3:])]:
        raise DataError(f"{place}: a recall falls from R@1 to R@10, which cannot be")
    total = math.fsum(recalls)
    if not values.get("rsum"):
        return (*recalls, total)
    given = _number(place, "rsum", values["rsum"])
    if not abs(given - total) <= ROUNDING:
        raise DataError(
            f"{place}: rsum {given:g} is not the sum of its six recalls, {total:.1f}; "
            "correct it, or leave it empty and say so in the note"
        )
    return (*recalls, given)


def _number(place: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{place}: {name} {text!r} is no number") from None
    if not math.isfinite(value):
        raise DataError(f"{place}: {name} {text!r} is no number")
    return value
