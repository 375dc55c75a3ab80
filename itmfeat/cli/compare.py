"""The command that compares runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import DeviceOption, JsonOption, app, command, print_json


@command(app)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two runs, or the runs of each side with `vs` between: A1 A2 vs B1 B2."),
    ],
    protocol: Annotated[str, typer.Option(help="auto, 1k, 5k, 5x1k or full.")] = "auto",
    metric: Annotated[str, typer.Option(help="What the verdict is on: rsum, i2t_r1, ..., t2i_r10.")] = "rsum",
    all_seeds: Annotated[
        bool, typer.Option("--all-seeds", help="Take every seed of these configurations that lies beside.")
    ] = False,
    listed: Annotated[int, typer.Option("--list", min=0, help="Name so many queries won and lost.")] = 0,
    bootstrap: Annotated[int, typer.Option(help="Resamples of the images for the intervals.")] = 1000,
    cache: Annotated[Path | None, typer.Option(help="Where the runs' cache is now.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, or two configurations with several seeds, on the test split.

    The same queries are paired. The verdict takes in how far seeds scatter; give several on each side, or
    leave finished seeds beside the runs. A folder stands for the runs in it.
    """
    from itmfeat.comparison import compare as run_comparison
    from itmfeat.console import note

    first, second = _sides(runs)
    found = run_comparison(
        first,
        second,
        protocol=protocol,
        metric=metric,
        all_seeds=all_seeds,
        listed=listed,
        resamples=bootstrap,
        cache=cache,
        device=device,
        note=note,
    )
    if as_json:
        print_json(found)
        return
    _print_metrics(found)
    print(_verdict(found))
    for entry in found.get("listed", ()):
        print(_query(entry))


def _sides(runs: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `vs`; two runs need none."""
    from itmfeat.errors import UsageError

    if "vs" not in runs and len(runs) == 2:
        return runs[:1], runs[1:]
    place = runs.index("vs") if runs.count("vs") == 1 else 0
    if not runs[:place] or not runs[place + 1 :]:
        raise UsageError("give two runs, or the runs of both sides with `vs` between: compare A1 A2 vs B1 B2")
    return runs[:place], runs[place + 1 :]


def _print_metrics(found: dict[str, Any]) -> None:
    """Both sides, then a line a metric."""
    for name in ("a", "b"):
        side = found[name]
        seeds = ", ".join(map(str, side["seeds"]))
        print(f"{name.upper()}: {side['method']}, noise {side['noise']}, seed {seeds}")
    apart = "; ".join(f"{key} {a} and {b}" for key, (a, b) in found["differ"].items())
    print(f"they differ in {apart or 'their seeds alone'}")
    print(
        f"{found['split']} split, protocol {found['protocol']}: {found['images']} images, "
        f"{found['captions']} captions, {found['level']} % intervals of A - B"
    )
    both = "seeds" in found["metrics"]["rsum"]
    last = f" {'over images and seeds':>24}" if both else ""
    print(f"{'':9} {'A':>7} {'B':>7} {'A - B':>7} {'over images':>24}{last} {'won':>6} {'lost':>6}")
    for key, entry in sorted(found["metrics"].items(), key=lambda item: item[0] != "rsum"):
        tests = _tested(entry.get("images")) + (f" {_tested(entry.get('seeds'))}" if both else "")
        counts = f" {entry['won']:6} {entry['lost']:6}" if "won" in entry else ""
        values = f"{entry['a']:7.1f} {entry['b']:7.1f} {entry['difference']:+7.1f}"
        print(f"{TITLES[key]:9} {values} {tests}{counts}".rstrip())


TITLES = {"rsum": "rSum"} | {
    f"{way}_{key}": f"{way} {title}"
    for way in ("i2t", "t2i")
    for key, title in {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "MedR", "meanr": "MeanR"}.items()
}


def _tested(test: dict[str, Any] | None) -> str:
    """Interval and p-value, 24 wide; that of Holm where there is one."""
    if test is None:
        return " " * 24
    low, high = test["interval"]
    p = test.get("p_holm", test.get("p"))
    return f"{low:+7.1f} {high:+7.1f} " + (" " * 8 if p is None else f"{_p(p):>8}")


def _p(p: float) -> str:
    return f"p {p:.4f}" if p >= 0.0001 else "p<0.0001"


def _verdict(found: dict[str, Any]) -> str:
    """The tests in a line each, and what they allow to say."""
    verdict, tests = found["verdict"], found["tests"]
    name = TITLES[verdict["metric"]]
    lines = [
        f"p of {name} as it is, of the other metrics corrected for their number (Holm)",
        f"over images: {tests['images']}",
    ]
    if "seeds" in found["metrics"]["rsum"]:
        runs = [len(found[side]["runs"]) + found[side]["seeds_beside"] for side in ("a", "b")]
        lines.append(f"over images and seeds: {tests['seeds']}; seeds known: {runs[0]} and {runs[1]}")
        if len({*found["a"]["order_seeds"], *found["b"]["order_seeds"]}) == 1:
            lines.append(
                "  all with one order of batches (schedule.order_seed): what another would do is not in it"
            )
    if verdict["significant"] is None:
        said = (
            f"undecided: these two trained models differ (over images {_p(verdict['p'])}), but one seed a "
            f"side does not tell what other seeds do: significant if {name} deviates by less than "
            f"{verdict['tolerated']:.1f} between seeds; train more (--seed) and `compare A1 A2 vs B1 B2`"
        )
    elif verdict["significant"]:
        said = f"{verdict['better'].upper()} is better ({_p(verdict['p'])})"
        if not found["differ"]:
            said += (
                ", by chance: both sides are one configuration, which happens to one pair of seeds in twenty"
            )
    else:
        said = f"no significant difference ({_p(verdict['p'])})"
    return "\n".join([*lines, f"verdict on {name}: {said}"])


def _query(entry: dict[str, Any]) -> str:
    ranks = f"rank A {entry['rank_a']:g}, B {entry['rank_b']:g}"
    return f"{TITLES[entry['metric']]} {entry['outcome']}: {ranks}: {entry['query']}"
