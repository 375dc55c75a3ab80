"""Two runs, or two configurations with several seeds, on the same queries: is the difference chance?"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from itmfeat import retrieval
from itmfeat.api import finished, rank_tensors
from itmfeat.cache import DatasetIndex, open_cache
from itmfeat.errors import DataError, Note, UsageError, silent, unknown
from itmfeat.pairs import Ints
from itmfeat.retrieval import Queries
from itmfeat.retrieval.significance import (
    TESTED,
    Difference,
    covariances,
    holm,
    over_seeds,
    parts,
    sign_flip,
)
from itmfeat.retrieval.uncertainty import LEVEL, METRICS, Floats, bootstrap, observed, percentiles
from itmfeat.runs import Run

ALPHA = 1 - LEVEL / 100
OVER_IMAGES = (
    "these models: sign-flip permutation and bootstrap of images with their captions, the gallery fixed"
)
OVER_SEEDS = (
    "these configurations: t test with the variance of seeds and of images (Obuchowski-Rockette, Welch)"
)

PathLike = str | Path


@dataclass
class Side:
    """The runs of one configuration, with different seeds of the heads or of the order of batches."""

    runs: list[Run]  # compared
    beside: list[Run] = field(default_factory=list)  # further seeds, which only tell the scatter


def compare(
    a: PathLike | Sequence[PathLike],
    b: PathLike | Sequence[PathLike],
    *,
    protocol: str = "auto",
    metric: str = "rsum",
    all_seeds: bool = False,
    listed: int = 0,
    resamples: int = 1000,
    flips: int = 10_000,
    seed: int = 0,
    cache: PathLike | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """Compare `a` with `b` on the test split: plain data, for each metric both values, difference, tests.

    A side is a run folder, a folder of runs or several of either, all of one configuration with different
    seeds. Where a side is one run, finished runs of its configuration in the same folder tell how far seeds
    scatter; `all_seeds` takes them all into the comparison.

    Two kinds of test, never to be confused: "images" is about these trained models (a percentile bootstrap
    and a sign-flip test, both paired over images), "seeds" about the configurations whatever the seed
    (`retrieval.significance.over_seeds`). `verdict` is about the configurations, on the one primary `metric`;
    it is open ("significant" None) where one seed a side says that the models differ and no other seed is
    known. p-values of the other metrics are also given corrected by Holm ("p_holm").

    `listed` > 0 names so many queries that A gets right and B does not, and the other way round, at the cut
    of the metric (at 1 for rsum); their texts come from the cache, if it is there.
    """
    if metric not in TESTED:
        raise unknown("metric", metric, list(TESTED))
    if min(resamples, flips) < 100:
        raise UsageError(f"an interval takes at least 100 resamples and flips, not {min(resamples, flips)}")
    sides = (_side(a, all_seeds, "first"), _side(b, all_seeds, "second"))
    _refuse_twice([run for side in sides for run in side.runs])
    ranks = _ranks(sides, cache, device, note)
    runs, tensors = list(ranks), list(ranks.values())
    _refuse_other_queries(runs, [found["captions"].tolist() for found in tensors])
    found = [retrieval.from_tensors(each, protocol) for each in tensors]
    models = [queries for _, queries in found]
    weight, group = _weights(sides, runs)
    metrics = _metrics(models, weight, group, metric, (resamples, flips, seed))
    result = {
        "a": _described(sides[0]),
        "b": _described(sides[1]),
        "differ": _differing(*(side.runs[0] for side in sides)),
        "protocol": found[0][0],
        "split": "test",
        "images": len(models[0].i2t),
        "captions": len(models[0].t2i),
        "metric": metric,
        "level": LEVEL,
        "resamples": resamples,
        "flips": flips,
        "seed": seed,
        "tests": {"images": OVER_IMAGES, "seeds": OVER_SEEDS},
        "metrics": metrics,
        "verdict": verdict(metric, metrics[metric]),
    }
    if listed:
        rows = (tensors[0]["images"].numpy(), tensors[0]["captions"].numpy())
        index = _index(runs[0], cache, note)
        result["listed"] = _listed(models, weight, metric, listed, rows, index)
    return result


# --- the two sides ---


def _side(given: PathLike | Sequence[PathLike], all_seeds: bool, name: str) -> Side:
    """The runs of a side, which must be of one configuration."""
    paths = [given] if isinstance(given, str | Path) else list(given)
    runs = [run for path in paths for run in _runs(Path(path))]
    if not runs:
        raise UsageError(f"the {name} side of the comparison holds no finished run")
    other = next((run for run in runs if _setting(run) != _setting(runs[0])), None)
    if other is not None:
        raise UsageError(
            f"{runs[0].path} and {other.path} stand on one side, but differ in more than their seeds; name "
            "the runs of one configuration on each side of `vs`"
        )
    side = Side(runs)
    if len(runs) == 1 or all_seeds:
        taken = {run.path for run in runs}
        beside = [run for run in _beside(runs[0]) if run.path not in taken]
        (side.runs if all_seeds else side.beside).extend(beside)
    return side


def _runs(path: Path) -> list[Run]:
    """A run folder, or the finished runs in a folder."""
    path = path.resolve()
    if (path / "config.json").exists():
        return [finished(path)]
    found = [Run(file.parent) for file in sorted(path.glob("*/config.json"))]
    if not found:
        raise DataError(f"{path} is no run folder and holds none")
    return [run for run in found if run.finished]


def _beside(run: Run) -> Iterator[Run]:
    """The other finished runs of the same configuration in the same folder."""
    for file in sorted(run.path.parent.glob("*/config.json")):
        other = Run(file.parent)
        with suppress(DataError):  # a neighbour that cannot be read is no seed of this run
            if other.finished and other.path != run.path and _setting(other) == _setting(run):
                yield other


def _setting(run: Run) -> str:
    """The configuration without its seeds, as text."""
    config = run.config().model_dump(mode="json")
    del config["seed"], config["schedule"]["order_seed"]
    return json.dumps(config, sort_keys=True)


def _ranks(
    sides: tuple[Side, Side], cache: PathLike | None, device: str, note: Note
) -> dict[Run, dict[str, Tensor]]:
    """The ranks of all runs; further seeds whose ranks are lost are left out."""
    ranks = {run: rank_tensors(run, cache, device, note) for side in sides for run in side.runs}
    known, lost = {run.path for run in ranks}, 0
    for side in sides:
        for run in side.beside:
            try:
                if run.path not in known:  # sides of one configuration have the same beside them
                    ranks[run] = rank_tensors(run, cache, device, note)
            except DataError:
                lost += 1
            known.add(run.path)
        side.beside = [run for run in side.beside if run.path in {other.path for other in ranks}]
    if lost:
        note(f"{lost} further seeds keep no ranks and are left out: pass --cache, or train them again")
    return ranks


def _refuse_twice(runs: list[Run]) -> None:
    """A run paired with itself, or counted as two seeds, would look certain."""
    seen: set[str] = set()
    for run in runs:
        digest = run.config().digest
        if digest in seen:
            raise UsageError(
                f"{run.path} stands twice in the comparison, or on both sides; name each run once"
            )
        seen.add(digest)


def _refuse_other_queries(runs: list[Run], captions: list[list[int]]) -> None:
    """Only ranks of the very same queries can be paired."""
    first = runs[0].config().data
    for run, rows in zip(runs, captions, strict=True):
        data = run.config().data
        if data.dataset_digest != first.dataset_digest:
            raise DataError(
                f"{runs[0].path} and {run.path} were made on different datasets ({first.dataset}, "
                f"{data.dataset}, by their digests), so they cannot be compared"
            )
        if rows != captions[0]:
            raise DataError(
                f"{runs[0].path} and {run.path} rank different captions or images of {data.dataset} (see "
                "captions_per_image, and images without features), so they cannot be compared"
            )


def _weights(sides: tuple[Side, Side], runs: list[Run]) -> tuple[Floats, Ints]:
    """What each run counts in A minus B, and the number of its configuration, both (R,)."""
    weight = np.zeros(len(runs))
    for side, sign in zip(sides, (1.0, -1.0), strict=True):
        for run in side.runs:
            weight[runs.index(run)] = sign / len(side.runs)
    settings = [_setting(run) for run in runs]
    return weight, np.array([settings.index(setting) for setting in settings])


def _differing(a: Run, b: Run) -> dict[str, list[Any]]:
    """The keys of the configuration, seeds aside, that set the sides apart, with both values."""
    first, second = (_flat(json.loads(_setting(run))) for run in (a, b))
    found = {key: [first.get(key), second.get(key)] for key in (first | second)}
    found = {key: values for key, values in found.items() if values[0] != values[1]}
    for section in ("loss", "robust"):
        if f"{section}.name" in found:  # then their parameters differ as a matter of course
            found = {
                k: v for k, v in found.items() if k == f"{section}.name" or not k.startswith(f"{section}.")
            }
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _described(side: Side) -> dict[str, Any]:
    """The configuration and the runs of a side, for a reader."""
    config = side.runs[0].config()
    noise = "file" if config.noise.file else f"{config.noise.protocol} {config.noise.ratio:g}"
    return {
        "method": config.label,
        "noise": noise,
        "runs": [str(run.path) for run in side.runs],
        "seeds": [run.config().seed for run in side.runs],
        "seeds_beside": len(side.beside),
        "order_seeds": sorted({run.config().schedule.order_seed for run in (*side.runs, *side.beside)}),
    }


# --- the numbers ---


def _metrics(
    models: list[Queries], weight: Floats, group: Ints, primary: str, effort: tuple[int, int, int]
) -> dict[str, dict[str, Any]]:
    """For each metric the values, the difference with its intervals, and the tests."""
    resamples, flips, seed = effort
    counted = np.flatnonzero(weight)
    share = weight[counted]
    own = [models[place] for place in counted]
    values = np.stack([observed(queries) for queries in own])  # (R, 11)
    moved = np.tensordot(share, bootstrap(own, resamples, seed), 1)  # (S, 11)
    ends, spread = percentiles(moved), moved.std(axis=0, ddof=1)
    a, b = (np.average(values[share * sign > 0], axis=0) for sign in (1, -1))
    table: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(METRICS):
        images = {"interval": ends[:, place].tolist(), "deviation": float(spread[place])}
        both = (float(a[place]), float(b[place]))
        table[name] = {"a": both[0], "b": both[1], "difference": both[0] - both[1], "images": images}
    added, centred = (np.stack(part) for part in zip(*(parts(queries) for queries in models), strict=True))
    p = sign_flip(np.tensordot(weight, added, 1), flips, seed)
    seeds = over_seeds(added.sum(1), covariances(centred), group, weight)
    _enter(table, "images", p, primary)
    if seeds is not None:
        _enter(table, "seeds", seeds.p, primary, seeds)
    for name, (won, lost) in _won(own, share).items():
        table[name] |= {"won": won, "lost": lost}
    return table


def _enter(
    table: dict[str, dict[str, Any]], test: str, p: Floats, primary: str, found: Difference | None = None
) -> None:
    """Put p-values of a test into the table; those beside the primary metric also corrected by Holm."""
    others = [place for place, name in enumerate(TESTED) if name != primary]
    corrected = dict(zip(others, holm(p[others]).tolist(), strict=True))
    for place, name in enumerate(TESTED):
        entry = table[name].setdefault(test, {})
        if found is not None:
            entry["interval"] = [float(found.low[place]), float(found.high[place])]
            entry["deviation"] = float(found.deviation[place])
            entry["freedom"] = float(found.freedom[place])
        entry["p"] = float(p[place])
        if place in corrected:
            entry["p_holm"] = corrected[place]


def _won(models: list[Queries], share: Floats) -> dict[str, tuple[int, int]]:
    """Queries that more of A's runs than of B's find at each cut, and the other way round."""
    counts = {}
    for name in TESTED[:-1]:
        balance = _balance(models, share, name)
        counts[name] = (int((balance > 1e-9).sum()), int((balance < -1e-9).sum()))
    return counts


def _balance(models: list[Queries], share: Floats, metric: str) -> Floats:
    """Share of A's runs that find each query at the cut, less that of B's, (queries,)."""
    way, cut = metric.split("_r")
    found: Floats = share @ np.stack([getattr(queries, way) < int(cut) for queries in models])
    return found


def verdict(metric: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the tests of one metric allow to say about the two configurations.

    "significant" is None where only the images were tested and found a difference. "tolerated" is then the
    standard deviation between seeds of one configuration up to which it would stay significant.
    """
    difference = entry["difference"]
    found: dict[str, Any] = {"metric": metric, "better": None, "significant": False}
    if "seeds" in entry:
        found |= {"p": entry["seeds"]["p"], "significant": entry["seeds"]["p"] <= ALPHA}
    else:
        found["p"] = entry["images"]["p"]
        if found["p"] <= ALPHA:
            room = (difference / 1.96) ** 2 - entry["images"]["deviation"] ** 2
            found |= {"significant": None, "tolerated": float(np.sqrt(max(room, 0.0) / 2))}
    if found["significant"]:
        found["better"] = "a" if difference > 0 else "b"
    return found


# --- the queries that tell them apart ---


def _index(run: Run, cache: PathLike | None, note: Note) -> DatasetIndex | None:
    """The index of the run's cache, for texts and file names; None, and a note, where it is gone."""
    path = Path(cache) if cache else Path(run.read("manifest.json")["cache"])
    try:
        index = open_cache(path).index
    except DataError as error:
        note(f"queries are listed by number alone: {error}")
        return None
    if index.digest != run.config().data.dataset_digest:
        raise DataError(f"{path} holds another dataset than this run was made with")
    return index


def _listed(
    models: list[Queries],
    weight: Floats,
    metric: str,
    number: int,
    rows: tuple[Ints, Ints],
    index: DatasetIndex | None,
) -> list[dict[str, Any]]:
    """Queries that the sides answer differently, the clearest first; both directions for rsum, at 1."""
    counted = np.flatnonzero(weight)
    own, share = [models[place] for place in counted], weight[counted]
    found = []
    for name in ("i2t_r1", "t2i_r1") if metric == "rsum" else (metric,):
        way = name[:3]
        balance = _balance(own, share, name)
        ranks = np.stack([getattr(queries, way) for queries in own]) + 1  # (R, queries), from 1
        a, b = (abs(share[share * sign > 0]) @ ranks[share * sign > 0] for sign in (1, -1))
        text = _names(way, rows, index)
        for outcome, sign in (("won", 1.0), ("lost", -1.0)):
            # By how many runs find it, then by the distance of the mean ranks.
            order = np.lexsort((-sign * (b - a), -sign * balance))
            for place in order[: min(number, int((sign * balance > 1e-9).sum()))]:
                query = {"query": text(int(place)), "rank_a": float(a[place]), "rank_b": float(b[place])}
                found.append({"metric": name, "outcome": outcome, **query})
    return found


def _names(way: str, rows: tuple[Ints, Ints], index: DatasetIndex | None) -> Any:
    """A function from the position of a query to what a reader knows it by."""
    images, captions = rows
    if way == "i2t":
        return lambda place: index.image_file[int(images[place])] if index else f"image {images[place]}"
    return lambda place: index.caption[int(captions[place])] if index else f"caption {captions[place]}"
