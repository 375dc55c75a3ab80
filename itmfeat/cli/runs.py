"""Commands about runs: train, evaluate, tabulate, and the demo of the whole way."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import CacheOption, DeviceOption, JsonOption, RunsOption, app, command, print_json


@command(app)
def train(
    loss: Annotated[str, typer.Option(help="See `itmfeat losses`; LOSS+METHOD stands for --robust too.")],
    robust: Annotated[
        str | None,
        typer.Option(help="A method of `itmfeat robust`; default: the one of the loss, mostly none."),
    ] = None,
    noise: Annotated[float, typer.Option(help="Noise ratio in [0, 1).")] = 0.0,
    noise_protocol: Annotated[str, typer.Option(help="ncr, decl, derangement or replacement.")] = "ncr",
    noise_seed: Annotated[str, typer.Option(help="Seed of the noise, or published.")] = "96",
    noise_file: Annotated[Path | None, typer.Option(help="A published .npy index instead.")] = None,
    cache: CacheOption = None,
    image_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    text_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    head: Annotated[str, typer.Option(help="A preset: default, mean-linear, ...")] = "default",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training captions.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    order: Annotated[
        str | None, typer.Option(help="full; block reads a slow disk in long pieces, shuffling less.")
    ] = None,
    resident: Annotated[
        str, typer.Option(help="Where features stay: gpu, ram, disk, or auto by what is free.")
    ] = "auto",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte of the features first.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the initial heads.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Any key, as in loss.margin=0.1; repeatable.")
    ] = None,
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Take a finished run as it is; unfinished ones always go on.")
    ] = False,
    log: Annotated[
        str, typer.Option(help="tensorboard, wandb, mlflow, trackio: send each epoch; several by commas.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Train light heads on a cache and evaluate them.

    The epoch with the best validation rSum is evaluated on the test split, once. An interrupted run goes on
    from its last checkpoint when the same command is given again.
    """
    settings = {key: value for key, value in locals().items() if key not in ("as_json", "overrides", "log")}

    from itmfeat.api import train as run
    from itmfeat.console import Meter, note
    from itmfeat.loggers import Stream, named
    from itmfeat.runs import Run

    with Meter() as meter, Stream(named(log), note) as stream:
        path = run(**settings, overrides=overrides or [], note=note, progress=meter.steps, logged=stream)
        stream(path)  # the test metrics
    results = Run(path).read("results.json")
    _print_results(results | {"run": str(path)}, as_json)


@command(app, "eval")
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; several with --ensemble.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    protocol: Annotated[str, typer.Option(help="auto, 1k, 5k, 5x1k, full or eccv.")] = "auto",
    captions: Annotated[
        int | None, typer.Option(help="The first N of each image, 0 for all; default as configured.")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Rank by the mean of the runs' similarities.")
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals, as 1000.")
    ] = 0,
    cache: Annotated[Path | None, typer.Option(help="Where the run's cache is now.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run, or several as one.

    Protocol eccv is for COCO 5K: it adds ECCV Caption and CxC, where several images fit a caption.
    """
    from itmfeat.api import evaluate as run_evaluation
    from itmfeat.console import note

    found = run_evaluation(
        runs,
        split,
        protocol,
        captions=captions,
        ensemble=ensemble,
        bootstrap=bootstrap,
        cache=cache,
        device=device,
        note=note,
    )
    _print_results(found, as_json)


def _print_results(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(results)
        return
    print(
        f"{results['split']} split, protocol {results['protocol']}: {results['images']} images, "
        f"{results['captions']} captions{_left_out(results)}"
    )
    if "ensemble" in results:
        print(f"ensemble of {len(results['ensemble'])}: {', '.join(results['ensemble'])}")
    print(f"{'':13} {'R@1':>6} {'R@5':>6} {'R@10':>6} {'MedR':>6} {'MeanR':>7}")
    for way, title in (("i2t", "image to text"), ("t2i", "text to image")):
        row = results[way]
        recalls = " ".join(f"{row[key]:6.1f}" for key in ("r1", "r5", "r10"))
        print(f"{title:13} {recalls} {row['medr']:6.0f} {row['meanr']:7.1f}")
    print(f"rSum {results['rsum']:.1f}")
    if "5x1k" in results:
        print(f"rSum {results['5x1k']['rsum']:.1f} (5x1k)")
    _print_relevance(results)
    for own in (results, results.get("5x1k", {})):
        if "interval" in own:
            _print_intervals(own)
    if "run" in results:
        print(results["run"])


def _print_intervals(results: dict[str, Any]) -> None:
    """The bootstrap intervals of one protocol."""
    made = results["interval"]
    print(
        f"{made['level']} % intervals, protocol {results['protocol']}: {made['resamples']} resamples of the "
        "images with their captions, the gallery fixed"
    )
    for way, title in (("i2t", "image to text"), ("t2i", "text to image")):
        ends = (f"{low:.1f}-{high:.1f}" for low, high in made[way].values())
        print(f"{title:13} " + " ".join(f"{text:>12}" for text in ends))
    print("rSum {:.1f}-{:.1f}".format(*made["rsum"]))


def _left_out(results: dict[str, Any]) -> str:
    """What was not ranked, or is not as in papers."""
    parts = []
    if results.get("dropped"):
        parts.append(f"{results['dropped']} more captions dropped")
    if standard := results.get("standard"):
        numbers = ", ".join(f"{number} {what}" for what, number in standard.items())
        parts.append(f"the whole split: {numbers}")
    return f" ({'; '.join(parts)})" if parts else ""


def _print_relevance(results: dict[str, Any]) -> None:
    """ECCV Caption and CxC, if they are among the results."""
    titles = {"map_at_r": "mAP@R", "r_precision": "R-P", "r1": "R@1", "r5": "R@5", "r10": "R@10"}
    for name, title in (("eccv", "ECCV Caption"), ("cxc", "CxC")):
        for way, label in (("i2t", "image to text"), ("t2i", "text to image")):
            if row := results.get(name, {}).get(way):
                metrics = [key for key in row if key != "queries"]
                if way == "i2t":
                    print(f"{title:13} " + " ".join(f"{titles[key]:>6}" for key in metrics))
                values = " ".join(f"{row[key]:6.1f}" for key in metrics)
                print(f"{label:13} {values} of {row['queries']} queries")


@command(app)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    form: Annotated[
        str, typer.Option("--format", help="table, markdown, latex, csv, json, html or svg.")
    ] = "table",
    published: Annotated[
        list[Path] | None,
        typer.Option("--with", help="A CSV file of published rows, as data/published.csv; repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to a file.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="html: the folder of the dataset or its images; data/DATASET.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="html: where the cache of the runs is now.")] = None,
    budget: Annotated[float, typer.Option(help="html: megabytes the page may have.")] = 20.0,
    queries: Annotated[int, typer.Option(help="html: queries of each direction in the gallery.")] = 60,
) -> None:
    """Print a table of finished runs, or write a page or figure about them.

    Means over seeds, grouped by dataset, protocol and noise; best in bold, second underlined. Published
    rows join the tables of their dataset, protocol, noise protocol and ratio, and are marked. `html` is one
    page with charts and a gallery of what the runs found, `svg` the figure of rSum against the noise ratio.
    """
    from itmfeat.console import note
    from itmfeat.report import collect, read_published, render, tabulate, unplaced
    from itmfeat.report.output import check_folder, put

    if output is not None:
        check_folder(output)
    collected = collect(runs)
    if collected.note:
        note(collected.note)
    rows = read_published(published or [])
    tables = tabulate(collected.runs, rows)
    for text in unplaced(rows, tables):
        note(text)
    if form == "table" and output is None and sys.stdout.isatty():
        _print_tables(tables)
        return
    if form == "html":
        from itmfeat.report.html import page

        text = page(tables, images=images, cache=cache, budget=budget, queries=queries, note=note)
    else:
        text = render(tables, form)
    if output is None:
        print(text, end="")
    else:
        put(output, text)


def _print_tables(tables: Any) -> None:
    from rich.console import Console

    from itmfeat.report import renderable

    Console().print(renderable(tables))


@command(app)
def demo(
    root: Annotated[Path, typer.Option(help="Where the pictures are drawn.")] = Path("data/demo"),
    cache: Annotated[Path, typer.Option(help="Cache folder.")] = Path("caches/demo"),
    runs: RunsOption = Path("runs/demo"),
) -> None:
    """Go the whole way on drawn pictures, in minutes.

    Draw a dataset, extract it, train two losses at two noise ratios, evaluate, print the table.
    """
    from itmfeat.console import Board, Meter, note
    from itmfeat.report import collect, tabulate
    from itmfeat.sweeps import sweep
    from itmfeat_extract.extraction import IMAGE_DEFAULT, TEXT_DEFAULT
    from itmfeat_extract.extraction import extract as run_extraction

    note("demo: 1/3 draw scenes and captions, extract them with the packaged backbones")
    with Meter() as meter:
        run_extraction("demo", root, cache, progress=meter.count, note=note)
    note("demo: 2/3 train two losses at two noise ratios, all four in one pass over the features")
    with Board() as board:
        paths = sweep(
            loss=["triplet", "snll"],
            noise=[0.0, 0.4],
            cache=cache,
            image_backbone=IMAGE_DEFAULT,
            text_backbone=TEXT_DEFAULT,
            runs=runs,
            tell=board.tell,
        )
    note("demo: 3/3 the table (test split, best validation epoch)")
    _print_tables(tabulate(collect(paths).runs))
