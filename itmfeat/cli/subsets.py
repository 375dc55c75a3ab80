"""Commands that make a cache from caches: subset and merge."""

from pathlib import Path
from typing import Annotated

import typer

from itmfeat.cli.features import cache_info
from itmfeat.cli.shell import CacheOption, JsonOption, cache_app, command


@command(cache_app, "subset")
def cache_subset(
    target: Annotated[Path, typer.Argument(help="Folder of the new cache.")],
    cache: CacheOption = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    images: Annotated[
        int | None, typer.Option(help="So many drawn images; without --split of each in proportion.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a cache of some images of another, with all their captions and features."""
    from itmfeat.cache import find_cache
    from itmfeat.cache.subset import subset
    from itmfeat.console import note

    made = subset(find_cache(cache), target, split=split, images=images, seed=seed, note=note)
    cache_info(made, as_json)


@command(cache_app, "merge")
def cache_merge(
    target: Annotated[Path, typer.Argument(help="Folder of the new cache.")],
    caches: Annotated[list[Path], typer.Argument(help="Two caches or more, of different images.")],
    as_json: JsonOption = False,
) -> None:
    """Join caches that hold different images of one dataset and the same backbones."""
    from itmfeat.cache.subset import merge
    from itmfeat.console import note

    cache_info(merge(caches, target, note=note), as_json)
