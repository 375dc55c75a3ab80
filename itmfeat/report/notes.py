"""The footnotes of a table: what a reader has to know before comparing its rows with a paper."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from itmfeat.report.collect import Run
from itmfeat.report.names import DIGEST, head_of
from itmfeat.report.table import Row, percent

PUBLISHED = "† As published, not run here: best and second are marked among our runs alone."


def notes_of(rows: list[Row]) -> list[str]:
    """Noise, seeds, models, sizes, and where published rows come from."""
    ours = [row for row in rows if row.runs]
    runs = [run for row in ours for run in row.runs]
    return [
        *_noise_notes(ours),
        *_seed_notes(ours),
        f"{_nets(ours)}, {_model_note(runs)}",
        _size_note(runs),
        *_published_notes(rows),
    ]


def _noise_notes(rows: list[Row]) -> list[str]:
    """Protocol, seed, and each ratio's effective rate and digest; a warning where draws differ."""
    draws: dict[float, dict[str, str]] = {}
    seeds = set()
    for row in rows:
        for run in row.runs:
            if row.noise:
                seeds.add(run.config.get("noise.seed"))
                digest, effective = run.manifest.noise.digest, run.manifest.noise.effective
                rate = "" if effective is None else f" (effective {100 * effective:.2f} %)"
                text = f"digest {digest[:DIGEST]}{rate}" if digest else "digest not recorded"
                draws.setdefault(row.noise, {})[str(digest)] = text
    if not draws:
        return ["Noise: none."]
    protocol = rows[0].runs[0].noise_protocol
    source = protocol if protocol == "file" else f"{protocol}, {_listed('seed', seeds)}"
    each = [f"{percent(ratio)} %: {' and '.join(texts.values())}" for ratio, texts in draws.items()]
    mixed = [percent(ratio) for ratio, texts in draws.items() if len(texts) > 1]
    notes = [f"Noise: {source}; {'; '.join(each)}."]
    if mixed:
        notes.append(f"Runs at {', '.join(mixed)} % saw different noise: compare them with care.")
    return notes


def _seed_notes(rows: list[Row]) -> list[str]:
    """Which seeds, and every row that counts a seed twice or lacks one that another row has."""
    runs = [run for row in rows for run in row.runs]
    seeds = {run.seed for run in runs}
    listed = _listed("seed", seeds)
    several = any(len(row.runs) > 1 for row in rows)
    notes = [
        f"Mean ± standard deviation over {listed} of the heads." if several else f"{listed.capitalize()}."
    ]
    for row in rows:
        label = f"{row.method} at {percent(row.noise)} %"
        drawn = Counter((run.seed, run.config.get("noise.seed")) for run in row.runs)
        notes += [f"{label} counts seed {seed} {n} times." for (seed, _), n in drawn.items() if n > 1]
        missing = seeds - {run.seed for run in row.runs}
        if missing:
            notes.append(f"{label} lacks {_listed('seed', missing)}.")
    return notes


def _nets(rows: list[Row]) -> str:
    """Single models or ensembles: a method of two nets averages their similarities."""
    found: dict[int | None, list[str]] = {}
    for row in rows:
        for run in row.runs:
            found.setdefault(run.nets, []).append(row.method)
    told = [
        _kind(nets) if len(found) == 1 else f"{_kind(nets)} ({_joined(names)})"
        for nets, names in sorted(found.items(), key=lambda item: item[0] or 0)
    ]
    text = "; ".join(told)
    return text[0].upper() + text[1:]


def _kind(nets: int | None) -> str:
    """What the similarities of a run come from."""
    if nets is None:
        return "single or ensemble not recorded"
    return "single model" if nets == 1 else f"ensemble of {nets} nets by averaged similarities"


def _model_note(runs: list[Run]) -> str:
    """Selection, backbones and head; "see rows" where they differ."""
    splits = sorted({run.manifest.selection.split or "unrecorded" for run in runs})
    image = _shared({str(run.config.get("image_backbone")) for run in runs})
    text = _shared({str(run.config.get("text_backbone")) for run in runs})
    head = _shared({head_of(run) for run in runs})
    selection = f"epoch selected on the {' and '.join(splits)} split"
    return f"{selection}; image backbone {image}, text backbone {text}; head {head}."


def _size_note(runs: list[Run]) -> str:
    """How many images and captions were ranked, and how rSum is made."""
    sizes = sorted({(run.results.images, run.results.captions) for run in runs})
    listed = " or ".join(f"{images} images and {captions} captions" for images, captions in sizes)
    folds = ", in folds of 1000 images" if runs[0].results.protocol == "5x1k" else ""
    return f"Ranked: {listed}{folds}. rSum is the sum of the six recalls before rounding."


def _published_notes(rows: list[Row]) -> list[str]:
    """Where each published row comes from; the ratios are named where a method has several sources."""
    by_source: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.published:
            methods = by_source.setdefault(row.published.cited, {})
            methods.setdefault(row.method, []).append(percent(row.noise))
    notes = [PUBLISHED] if by_source else []
    for source, methods in by_source.items():
        told = []
        for method, ratios in methods.items():
            several = sum(method in others for others in by_source.values()) > 1
            told.append(f"{method} at {', '.join(ratios)} %" if several else method)
        notes.append(f"† {', '.join(told)}: {source}.")
    return notes


def _joined(names: Iterable[str]) -> str:
    """Each name once."""
    return ", ".join(dict.fromkeys(names))


def _shared(values: set[str]) -> str:
    """The one value, or where to look."""
    return values.pop() if len(values) == 1 else "as in the rows"


def _listed(what: str, values: set[Any]) -> str:
    """ "seed 0", or "seeds 0, 1"."""
    names = [str(value) for value in sorted(values, key=lambda value: (value is None, value))]
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"
