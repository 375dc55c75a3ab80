"""The command line: each command parses, calls one function and prints.

Heavy libraries are imported inside the commands, so that `itmfeat --help` answers at once.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from itmfeat.errors import INTERRUPTED, ItmfeatError

F = TypeVar("F", bound=Callable[..., Any])

app = typer.Typer(
    help="Image-text matching research on frozen features: extract once, train light heads in minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="Look into a cache and check it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")

CacheOption = Annotated[Path | None, typer.Option("--cache", help="Cache folder; the only one in ./caches.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where run folders are made.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone on stdout.")]


def command(group: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Register a command whose errors become one sentence on stderr and an exit code."""

    def register(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except ItmfeatError as error:
                raise _leave(f"error: {error}", error.exit_code) from None
            except BrokenPipeError:  # the reader of a pipe, as `head`, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit from None
            except OSError as error:
                reason = error.strerror or str(error)
                place = f" ({error.filename})" if error.filename else ""
                raise _leave(f"error: {reason}{place}", ItmfeatError.exit_code) from None
            except KeyboardInterrupt:
                raise _leave("interrupted; the same command goes on from here", INTERRUPTED) from None

        group.command(name)(guarded)
        return function

    return register


def _leave(text: str, code: int) -> typer.Exit:
    print(text, file=sys.stderr, flush=True)
    return typer.Exit(code)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from itmfeat import __version__

        print(f"itmfeat {__version__}")
        raise typer.Exit


@command(app)
def extract(
    dataset: Annotated[str, typer.Argument(help="coco, flickr30k, flickr8k or demo.")],
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; data/DATASET.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache folder; caches/DATASET.")] = None,
    image_backbone: Annotated[str, typer.Option(help="See `itmfeat backbones`.")] = "efficientnet-lite0",
    text_backbone: Annotated[str, typer.Option(help="See `itmfeat backbones`.")] = "minilm-l6",
    tokens: Annotated[str, typer.Option(help="all, pooled or grid:HxW.")] = "all",
    dtype: Annotated[str, typer.Option(help="float16, float32 or int8.")] = "float16",
    limit: Annotated[int | None, typer.Option(help="Only so many images, of all splits.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Where there is no split.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Where there is no split.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of a split by fractions.")] = 0,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Extract frozen features of a dataset into a cache; resumes what was interrupted."""
    from itmfeat.console import Meter, note
    from itmfeat_extract.corpus import SplitFractions
    from itmfeat_extract.extraction import Plan
    from itmfeat_extract.extraction import extract as run

    fractions = None
    if val_fraction is not None or test_fraction is not None:
        fractions = SplitFractions(val_fraction or 0.0, test_fraction or 0.0, split_seed)
    with Meter() as meter:
        made = run(
            dataset,
            root,
            cache,
            image_backbone,
            text_backbone,
            tokens=tokens,
            dtype=dtype,
            limit=limit,
            workers=workers,
            device=device,
            fractions=fractions,
            dry_run=dry_run,
            progress=meter.count,
            note=note,
        )
    if isinstance(made, Plan):
        facts = vars(made)
        if as_json:
            _print_json(facts)
        else:
            print("\n".join(f"{name.replace('_', ' '):12} {value}" for name, value in facts.items()))
    else:
        _print_info(made, as_json)


@command(app)
def train(
    loss: Annotated[str, typer.Option(help="See `itmfeat losses`.")],
    noise: Annotated[float, typer.Option(help="Noise ratio in [0, 1).")] = 0.0,
    noise_protocol: Annotated[str, typer.Option(help="ncr or decl.")] = "ncr",
    noise_seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 96,
    noise_file: Annotated[Path | None, typer.Option(help="A published .npy index instead.")] = None,
    cache: CacheOption = None,
    image_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    text_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    head: Annotated[str, typer.Option(help="A preset: default, mean-linear, ...")] = "default",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training captions.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial heads.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Any key, as in loss.margin=0.1; repeatable.")
    ] = None,
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Take a finished run as it is; unfinished ones always go on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train light heads on a cache; the best validation epoch is evaluated on the test split."""
    from itmfeat.api import train as run
    from itmfeat.console import Meter

    with Meter() as meter:
        path = run(
            loss,
            noise,
            noise_protocol=noise_protocol,
            noise_seed=noise_seed,
            noise_file=noise_file,
            cache=cache,
            image_backbone=image_backbone,
            text_backbone=text_backbone,
            head=head,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            overrides=overrides or [],
            runs=runs,
            device=device,
            resume=resume,
            progress=meter.steps,
        )
    results = json.loads((path / "results.json").read_text())
    _print_results(results | {"run": str(path)}, as_json)


@command(app, "eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    protocol: Annotated[str, typer.Option(help="auto, 1k, 5k, 5x1k or full.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where the run's cache is now.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run."""
    from itmfeat.api import evaluate as run_evaluation

    found = run_evaluation(run, split, protocol, cache=cache, device=device)
    _print_results(found, as_json)


def _print_results(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(results)
        return
    print(
        f"{results['split']} split, protocol {results['protocol']}: {results['images']} images, "
        f"{results['captions']} captions"
    )
    print(f"{'':13} {'R@1':>6} {'R@5':>6} {'R@10':>6} {'MedR':>6} {'MeanR':>7}")
    for way, title in (("i2t", "image to text"), ("t2i", "text to image")):
        row = results[way]
        recalls = " ".join(f"{row[key]:6.1f}" for key in ("r1", "r5", "r10"))
        print(f"{title:13} {recalls} {row['medr']:6.0f} {row['meanr']:7.1f}")
    print(f"rSum {results['rsum']:.1f}")
    if "5x1k" in results:
        print(f"rSum {results['5x1k']['rsum']:.1f} (5x1k)")
    if "run" in results:
        print(results["run"])


@command(app)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    form: Annotated[str, typer.Option("--format", help="table, markdown, csv or json.")] = "table",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to a file.")] = None,
) -> None:
    """A table of finished runs: means over seeds, grouped by dataset, protocol and noise."""
    from itmfeat.console import note
    from itmfeat.report import collect, render, tabulate

    collected = collect(runs)
    if collected.note:
        note(collected.note)
    tables = tabulate(collected.runs)
    if output is not None:
        output.write_text(render(tables, form))
    elif form == "table":
        _print_tables(tables)
    else:
        print(render(tables, form), end="")


def _print_tables(tables: Any) -> None:
    from rich.console import Console

    from itmfeat.report import renderable

    Console().print(renderable(tables))


@command(app)
def losses(
    family: Annotated[str | None, typer.Argument(help="The first word of the names, as in goal.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The losses with their equations, sources and parameters."""
    from itmfeat.errors import unknown
    from itmfeat.losses import LOSSES, parameters

    families = {name: name.split("-")[0] for name in LOSSES}
    if family is not None and family not in families.values():
        raise unknown("family of losses", family, list(dict.fromkeys(families.values())))
    chosen = {name: loss for name, loss in LOSSES.items() if family in {None, families[name]}}
    if as_json:
        facts = {name: {"equation": loss.equation, "source": loss.source} for name, loss in chosen.items()}
        _print_json([{"name": name, **facts[name], "parameters": parameters(name)} for name in chosen])
        return
    width = max(map(len, chosen)) + 1
    for name, loss in chosen.items():
        defaults = " ".join(f"{key}={json.dumps(value)}" for key, value in parameters(name).items())
        print(f"{name:{width}} {loss.equation}\n{'':{width}} {loss.source}; {defaults}")


@command(app)
def backbones(as_json: JsonOption = False) -> None:
    """The frozen encoders that have a name; any transformers encoder works as hf:ID_OR_FOLDER."""
    from itmfeat_extract.backbones import PRESETS

    rows = [
        {
            "name": name,
            "kind": preset.kind,
            "tokens": preset.tokens,
            "licence": preset.licence,
            "source": preset.source,
        }
        for name, preset in PRESETS.items()
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:20} {row['kind']:6} {row['tokens']:12} {row['licence']:14} {row['source']}")
    print("hf:ID_OR_FOLDER      any transformers vision or text encoder of a known family")


@command(app)
def doctor(as_json: JsonOption = False) -> None:
    """Versions, devices, FAISS, disk: what to look at first when something is odd."""
    from itmfeat.doctor import examine

    found = examine()
    if as_json:
        _print_json(found)
    else:
        print("\n".join(f"{name:14} {value}" for name, value in found.items()))


@command(app)
def demo(
    root: Annotated[Path, typer.Option(help="Where the pictures are drawn.")] = Path("data/demo"),
    cache: Annotated[Path, typer.Option(help="Cache folder.")] = Path("caches/demo"),
    runs: RunsOption = Path("runs/demo"),
) -> None:
    """The whole way in a few minutes: draw a dataset, extract it, train, evaluate, print the table."""
    from itmfeat.api import train_table
    from itmfeat.console import Meter, note
    from itmfeat.report import collect, tabulate
    from itmfeat_extract.extraction import extract as run_extraction

    note("demo: 1/3 draw scenes and captions, extract them with the packaged backbones")
    with Meter() as meter:
        run_extraction("demo", root, cache, progress=meter.count, note=note)
    note("demo: 2/3 train two losses at two noise ratios, all four in one pass over the features")
    with Meter() as meter:
        paths = train_table(cache, ("triplet", "snll"), (0.0, 0.4), runs, progress=meter.steps)
    note("demo: 3/3 the table (test split, best validation epoch)")
    _print_tables(tabulate(collect(paths).runs))


@command(cache_app, "info")
def cache_info(
    path: Annotated[Path | None, typer.Argument(help="Cache folder; the only one in ./caches.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a cache holds."""
    from itmfeat.cache import find_cache

    _print_info(find_cache(path), as_json)


def _print_info(path: Path, as_json: bool) -> None:
    from itmfeat.cache import describe, open_cache

    found = describe(open_cache(path))
    if as_json:
        _print_json(found)
        return
    print(f"{found['path']}: {found['dataset']}, digest {found['digest'][:12]}")
    for split, (images, captions) in found["splits"].items():
        print(f"  {split:5} {images} images, {captions} captions")
    for file in found["features"]:
        print(
            f"  {file['kind']:5} {file['name']}: {file['items']} items, {file['vectors']} vectors x "
            f"{file['dim']} {file['dtype']}, {file['bytes'] / 1e6:.1f} MB, digest {file['digest'][:12]}"
        )
    for part in found["unfinished"]:
        print(f"  unfinished: {part}")


@command(cache_app, "verify")
def cache_verify(
    path: Annotated[Path | None, typer.Argument(help="Cache folder; the only one in ./caches.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of a cache with its checksums."""
    from itmfeat.cache import find_cache, verify
    from itmfeat.errors import DataError

    damaged = verify(find_cache(path))
    if as_json:
        _print_json({"damaged": damaged})
    elif not damaged:
        print("every byte is as it was written")
    if damaged:
        raise DataError("; ".join(damaged))


def main() -> None:
    """The entry point of the `itmfeat` command."""
    app(prog_name="itmfeat")
