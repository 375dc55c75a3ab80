"""The command that sends run folders to a logger."""

from pathlib import Path
from typing import Annotated

import typer

from itmfeat.cli.shell import JsonOption, app, command, print_json


@command(app)
def log(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb, mlflow or trackio; several by commas.")],
    as_json: JsonOption = False,
) -> None:
    """Send the metrics of finished or unfinished runs to a logger.

    Only what it does not have yet: the command may be repeated. `train --log` does the same after each epoch.
    """
    from itmfeat.loggers import export, named
    from itmfeat.report import run_folders

    names = named(to)
    sent = []
    for run in run_folders(runs):
        for name in names:
            sent.append({"run": str(run), "logger": name, "points": export(run, name)})
            if not as_json:
                print(f"{run}: {sent[-1]['points']} new points to {name}")
    if as_json:
        print_json(sent)
