"""Commands that make features from features: subset, merge and quantize."""

from pathlib import Path
from typing import Annotated

import typer

from itmfeat.cli.features import cache_info
from itmfeat.cli.shell import CacheOption, JsonOption, cache_app, command, print_json


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


@command(cache_app, "quantize")
def cache_quantize(
    cache: CacheOption = None,
    image_backbone: Annotated[
        str | None, typer.Option(help="Source; the only one. Without images: none.")
    ] = None,
    text_backbone: Annotated[
        str | None, typer.Option(help="Source; the only one. Without text: none.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="int8 or float16; int8, with --pca that of the source.")
    ] = None,
    pca: Annotated[
        int | None, typer.Option(help="Keep so many dimensions, fitted on the training split.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the new features; SOURCE@int8, SOURCE@pca256, ...")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make smaller features beside those that a cache has: int8 values, fewer dimensions, or both."""
    from itmfeat.cache import find_cache
    from itmfeat.cache.quantization import quantize_cache
    from itmfeat.console import Meter, note

    path = find_cache(cache)
    with Meter() as meter:
        made = quantize_cache(
            path,
            image_backbone=image_backbone,
            text_backbone=text_backbone,
            dtype=dtype,
            dim=pca,
            name=name,
            progress=meter.count,
            note=note,
        )
    if as_json:
        print_json(made)
        return
    for file in made:
        kept = f", {file['pca']['variance']:.1%} of the training variance" if file["pca"] else ""
        print(
            f"{file['kind']:5} {file['name']}: {file['vectors']} vectors x {file['dim']} {file['dtype']}, "
            f"{file['bytes'] / 1e6:.1f} MB instead of {file['source_bytes'] / 1e6:.1f} MB{kept}"
        )
    chosen = " ".join(f"--{file['kind']}-backbone {file['name']}" for file in made)
    train = f"itmfeat train --loss infonce --cache {path} {chosen}"
    note(f"for its cost in rSum, train on the source and on this: {train}")
