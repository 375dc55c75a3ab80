"""The command for tables of runs: grids, plan, executors."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from itmfeat.cli.shell import DeviceOption, JsonOption, app, command, print_json, print_no_more
from itmfeat.errors import UsageError

Listed = list[str] | None


def _list(text: str) -> Any:
    return typer.Option(help=f"{text} Several with commas, or repeated.")


SpecArgument = Annotated[Path | None, typer.Argument(help="A YAML file; flags take the place of its keys.")]
StackOption = Annotated[
    str | None, typer.Option(help="Only stack i of n, as --print-commands writes it: 3/12.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it would take.")]
CommandsOption = Annotated[
    bool, typer.Option("--print-commands", help="Print a command for each stack; train nothing.")
]
SearchOption = Annotated[str | None, typer.Option(help="optuna: search the ranges of the file.")]
TrialsOption = Annotated[int | None, typer.Option(help="Trials of a search; 40.")]
SearchSeedOption = Annotated[int | None, typer.Option(help="Seed of a search; 0.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Stacks that train at the same time, a process each.")
]
EngineOption = Annotated[str, typer.Option(help="local, or ray: on the machines of a Ray cluster.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster; else RAY_ADDRESS or the local one.")
]
GpusOption = Annotated[float | None, typer.Option(help="With Ray, GPUs that a stack takes, as 0.5; else 1.")]
WidthOption = Annotated[
    int | None, typer.Option(help="Nets in a stack; what memory allows, up to 32, on a GPU 96.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="More than 10,000 settings are meant.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A grid over any key: loss.margin=0.1,0.2; repeatable."),
]
RunsOption = Annotated[Path | None, typer.Option(help="Where run folders are made; runs, or runs/NAME.")]
ResidentOption = Annotated[str, typer.Option(help="Where features stay, as for train.")]
VerifyOption = Annotated[bool, typer.Option("--verify", help="Compare every byte of the features first.")]

_AXES = (
    *("loss", "noise", "noise_protocol", "noise_seed", "noise_file", "cache", "image_backbone"),
    *("text_backbone", "head", "epochs", "batch_size", "lr", "order", "seed"),
)


@command(app)
def sweep(
    spec: SpecArgument = None,
    loss: Annotated[Listed, _list("Losses, with robust methods: triplet,snll+ncr.")] = None,
    noise: Annotated[Listed, _list("Noise ratios.")] = None,
    noise_protocol: Annotated[Listed, _list("ncr, decl, derangement or replacement.")] = None,
    noise_seed: Annotated[Listed, _list("Seeds of the noise, or published.")] = None,
    noise_file: Annotated[Listed, _list("Published .npy indexes instead.")] = None,
    cache: Annotated[Listed, _list("Cache folders; the only one in ./caches.")] = None,
    image_backbone: Annotated[Listed, _list("Where the cache has several.")] = None,
    text_backbone: Annotated[Listed, _list("Where the cache has several.")] = None,
    head: Annotated[Listed, _list("Presets: default, mean-linear, ...")] = None,
    epochs: Annotated[Listed, _list("Passes over the training captions.")] = None,
    batch_size: Annotated[Listed, _list("Pairs in a batch.")] = None,
    lr: Annotated[Listed, _list("Highest learning rates.")] = None,
    order: Annotated[Listed, _list("full or block.")] = None,
    seed: Annotated[Listed, _list("Seeds of the initial heads.")] = None,
    overrides: SetOption = None,
    runs: RunsOption = None,
    width: WidthOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    gpus: GpusOption = None,
    stack: StackOption = None,
    device: DeviceOption = "auto",
    resident: ResidentOption = "auto",
    verify: VerifyOption = False,
    yes: YesOption = False,
    search: SearchOption = None,
    trials: TrialsOption = None,
    search_seed: SearchSeedOption = None,
    dry_run: DryRunOption = False,
    print_commands: CommandsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a table of runs: losses x noise ratios x seeds, as many side by side as fit.

    Each setting becomes a run folder like that of `train`. Finished ones are kept, and after an interruption
    the same command goes on where it was.
    """
    asked = locals()
    _check(asked)

    from itmfeat.sweeps.sweep import Site, plan_sweep

    grid = _grid(asked)
    site = Site(device, resident, verify, width, workers, engine, address, gpus, _part(stack))
    fixed = print_commands or stack is not None
    if search is not None:
        of_search = {"spec": spec, "trials": trials, "search_seed": search_seed, "runs": runs, "site": site}
        _search(search, as_json, fixed or dry_run, **of_search, **grid)
        return
    plan = plan_sweep(spec, runs=runs, yes=yes, site=site, everything=fixed, **grid)
    if print_commands:
        _print_commands(plan, asked, as_json)
    elif dry_run:
        _print_plan(plan, site, as_json)
    else:
        _run(plan, site, as_json)


def _check(asked: dict[str, Any]) -> None:
    """Flags that mean something only together, or never."""
    of_search = (asked["trials"], asked["search_seed"])
    if asked["search"] is None and of_search != (None, None):
        raise UsageError("--trials and --search-seed go with --search optuna")
    if asked["search"] is None and asked["print_commands"] and asked["stack"] is not None:
        raise UsageError("--print-commands prints all stacks; leave out --stack")


def _grid(asked: dict[str, Any]) -> dict[str, list[str]]:
    """The values of the flags that were given."""
    from itmfeat.sweeps.spec import split_flag, split_overrides

    grid = {key: split_flag(_flag(key), text) for key, text in _lists(asked).items()}
    return grid | split_overrides(asked["overrides"] or [])


def _lists(asked: dict[str, Any]) -> dict[str, str]:
    """The comma lists of the flags that were given, repeated ones joined."""
    return {key: ",".join(asked[key]) for key in _AXES if asked[key] is not None}


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _part(text: str | None) -> tuple[int, int] | None:
    """ "3/12" as numbers."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--stack takes i/n, as in 3/12, not {text!r}")
    return int(found[1]), int(found[2])


def _print_plan(plan: Any, site: Any, as_json: bool) -> None:
    """The plan of a dry run, with an estimate of the time."""
    from itmfeat.sweeps.estimate import estimate
    from itmfeat.sweeps.plan import described

    elsewhere = site.engine == "ray"  # this machine says nothing about those of a cluster
    seconds = None if elsewhere else estimate(plan, site.device, site.at_once)
    if as_json:
        print_json(described(plan) | {"step_seconds": seconds})
        return
    print(_table(plan, sys.stdout))
    print(_counts(plan))
    if seconds is None:
        why = "it trains on a cluster" if elsewhere else "a stack does not fit into the GPU's memory"
        print(f"no estimate of the time: {why}")
        return
    print(f"about {_clock(seconds)} of training steps, by a few steps of each kind; evaluation comes on top")


def _counts(plan: Any) -> str:
    """One line about a plan."""
    open_ = len(plan.settings) - len(plan.finished) - len(plan.diverged)
    parts = [f"{_many(plan.settings, 'setting')}: {open_} to train in {_many(plan.stacks, 'stack')}"]
    parts += [f"{len(plan.finished)} finished"] if plan.finished else []
    parts += [f"{len(plan.diverged)} diverged before"] if plan.diverged else []
    return f"{', '.join(parts)}; runs in {plan.runs}"


def _many(items: Sized, name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _table(plan: Any, file: TextIO) -> str:
    """The stacks of a plan as text, as wide as the screen that `file` may be."""
    from rich.console import Console
    from rich.table import Table

    from itmfeat.sweeps.plan import gigabytes

    table = Table(
        "stack", "settings", "nets", "memory", "dataset", "head, schedule", "losses", "noise", "seeds"
    )
    for stack, told in zip(plan.stacks, _telling(plan), strict=True):
        configs = [setting.config for setting in stack.settings]
        head, data = configs[0].head, configs[0].data
        kinds = (
            [config.label for config in configs],
            [f"{config.noise.ratio:g} {config.noise.protocol}" for config in configs],
            [str(config.seed) for config in configs],
        )
        table.add_row(
            str(stack.number),
            str(len(configs)),
            str(stack.nets),
            gigabytes(stack.bytes),
            f"{data.dataset} {data.image_backbone} {data.text_backbone}",
            " ".join([f"{head.pooling}-{head.projection}-{head.dim}", *told]),
            *(", ".join(dict.fromkeys(kind)) for kind in kinds),
        )
    console = Console(width=None if file.isatty() else 140)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _telling(plan: Any) -> list[list[str]]:
    """What else tells the stacks apart, as "lr=0.01", of each."""
    configs = [stack.settings[0].config for stack in plan.stacks]
    kinds = [config.head.model_dump() | config.schedule.model_dump() for config in configs]
    keys = [key for key in (kinds or [{}])[0] if key not in ("pooling", "projection", "dim")]
    different = [key for key in keys if len({kind[key] for kind in kinds}) > 1]
    return [[f"{key}={kind[key]}" for key in different] for kind in kinds]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _told(board: Any, as_json: bool) -> Callable[[dict[str, Any]], None]:
    """Events for the user, and as lines of JSON for a program."""
    stdout = sys.stdout  # an executor may lend the name to others meanwhile

    def tell(event: dict[str, Any]) -> None:
        board.tell(event)
        if as_json and event["event"] != "step":
            try:
                print(json.dumps(event, default=str), file=stdout, flush=True)
            except BrokenPipeError:  # the training goes on
                print_no_more(stdout)

    return tell


def _search(brain: str, as_json: bool, planned: bool, **asked: Any) -> None:
    """Search, and print the best trial."""
    from itmfeat.console import Board, note
    from itmfeat.errors import unknown
    from itmfeat.sweeps.sweep import search

    if brain != "optuna":
        raise unknown("--search", brain, ["optuna"])
    if planned:
        raise UsageError("a search plans as it goes: leave out --dry-run, --print-commands and --stack")
    given = {key: value for key, value in asked.items() if value is not None}
    with Board() as board:
        best = search(**({"trials": 40} | given), tell=_told(board, as_json), note=note)
    if as_json:
        print(json.dumps({"event": "best", **vars(best)}, default=str), flush=True)
        return
    diverged = f", {best.diverged} diverged" if best.diverged else ""
    print(f"trial {best.number} is the best of {best.trials}{diverged}: val rSum {best.val_rsum:.1f}")
    print("\n".join(f"{key}: {value}" for key, value in best.values.items()))
    print("\n".join(map(str, best.runs)))


def _run(plan: Any, site: Any, as_json: bool) -> None:
    """Train a plan under the eyes of the user, or of a program."""
    from itmfeat.console import Board, note
    from itmfeat.sweeps.sweep import check, run_plan

    check(plan, site)
    if plan.stacks and not as_json:
        note(_table(plan, sys.stderr))
    note(_counts(plan))
    with Board() as board:
        folders = run_plan(plan, site, _told(board, as_json), note)
    if not as_json:
        print("\n".join(map(str, folders)))


def _print_commands(plan: Any, asked: dict[str, Any], as_json: bool) -> None:
    """A line for each stack, for shells and job arrays; for programs a list of them."""
    from itmfeat.console import note

    words = ["itmfeat", "sweep", *([str(asked["spec"])] if asked["spec"] else [])]
    plain = {key: asked[key] for key in ("runs", "device", "resident") if asked[key] not in (None, "auto")}
    for key, value in (_lists(asked) | plain).items():
        words += [_flag(key), str(value)]
    for text in asked["overrides"] or []:
        words += ["--set", text]
    words += [f"--{key}" for key in ("verify", "yes") if asked[key]]
    line, count = f"{shlex.join(words)} --width {plan.width} --stack", len(plan.stacks)
    commands = [f"{line} {number}/{count}" for number in range(1, count + 1)]
    if as_json:
        print_json(commands)
        return
    print("\n".join(commands))
    note(f"in a Slurm array (--array=1-{count}): {line} $SLURM_ARRAY_TASK_ID/{count}")
