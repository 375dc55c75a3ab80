"""What all commands share: the apps, common options, and how an error becomes a sentence and a code."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

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

RESUMED = {"extract", "train", "sweep", "demo"}
"""Commands that go on where they were when they are given again; those of `cache` do too."""

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
            except BrokenPipeError:
                print_no_more(sys.stdout)
                raise typer.Exit from None
            except OSError as error:
                reason = error.strerror or str(error)
                place = f" ({error.filename})" if error.filename else ""
                raise _leave(f"error: {reason}{place}", ItmfeatError.exit_code) from None
            except KeyboardInterrupt:
                goes_on = group is cache_app or function.__name__ in RESUMED
                more = "; the same command goes on from here" if goes_on else ""
                raise _leave(f"interrupted{more}", INTERRUPTED) from None

        group.command(name)(guarded)
        return function

    return register


def _leave(text: str, code: int) -> typer.Exit:
    print(text, file=sys.stderr, flush=True)
    return typer.Exit(code)


def print_no_more(stdout: TextIO) -> None:
    """The reader of a pipe, as `head`, has seen enough: what is still printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def print_json(value: Any) -> None:
    """Results for a program: JSON alone on stdout."""
    print(json.dumps(value, indent=1, default=str))
