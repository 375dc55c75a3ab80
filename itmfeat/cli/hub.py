"""Commands that share a cache over the Hugging Face hub: push and pull."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from itmfeat.cli.features import cache_info
from itmfeat.cli.shell import CacheOption, JsonOption, cache_app, command, print_json


def _bars() -> None:
    """The library's progress bars, which go to stderr, only where someone sees them."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


RepoArgument = Annotated[str, typer.Argument(help="OWNER/NAME of a dataset repository.")]


@command(cache_app, "push")
def cache_push(
    repo: RepoArgument,
    cache: CacheOption = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made where there is none; main.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; upload nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a cache to the Hugging Face hub.

    Every byte is checked first. README.md is written anew: what is in the cache, and the terms of the dataset
    and of the backbones' weights. HF_TOKEN and HF_ENDPOINT hold.
    """
    from itmfeat.cache import find_cache
    from itmfeat.cache.hub import pack, push
    from itmfeat.console import note

    _bars()
    folder = find_cache(cache)
    if not dry_run:
        address = push(folder, repo, private=private, revision=revision, note=note)
        print_json({"commit": address}) if as_json else print(address)
        return
    parcel = pack(folder, repo, revision=revision)
    for text in parcel.notes:
        note(text)
    sizes = {name: file.stat().st_size for name, file in parcel.files.items()}
    if as_json:
        print_json({"files": sizes, "card": parcel.card})
        return
    print(parcel.card)
    print("\n".join(f"{size / 1e6:12.1f} MB  {name}" for name, size in sizes.items()))


@command(cache_app, "pull")
def cache_pull(
    repo: RepoArgument,
    cache: Annotated[Path | None, typer.Option(help="Cache folder; caches/DATASET.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; main.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a cache from the Hugging Face hub.

    Every byte is checked before it counts as a cache. Repeating an interrupted pull goes on where it was. A
    cache that is there already gets the features that it lacks.
    """
    from itmfeat.cache.hub import pull
    from itmfeat.console import note

    _bars()
    cache_info(pull(repo, cache, revision=revision, note=note), as_json)
