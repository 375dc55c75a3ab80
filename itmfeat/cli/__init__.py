"""The command line: each command parses, calls one function and prints.

Heavy libraries are imported inside the commands, so that `itmfeat --help` answers at once. A new command goes
into the module of its subject; importing the module registers it.
"""

from typing import Annotated

import typer

from itmfeat.cli import compare, features, hub, log, noise, runs, search, subsets, survey
from itmfeat.cli.shell import app

__all__ = ["app", "compare", "features", "hub", "log", "main", "noise", "runs", "search", "subsets", "survey"]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from itmfeat import __version__

        print(f"itmfeat {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point of the `itmfeat` command."""
    app(prog_name="itmfeat")
