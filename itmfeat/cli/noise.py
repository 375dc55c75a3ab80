"""Commands about noisy correspondence: make an index file, look into one, regenerate the published ones."""

from pathlib import Path
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import CacheOption, JsonOption, app, command, print_json

noise_app = typer.Typer(
    help="Index files of noisy correspondence: make, inspect, regenerate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(noise_app, name="noise")


@command(noise_app)
def make(
    noise: Annotated[float, typer.Option(help="Noise ratio in [0, 1).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npy file to write.")],
    protocol: Annotated[
        str, typer.Option(help="ncr, decl, derangement, replacement or cluster (images that look alike).")
    ] = "ncr",
    seed: Annotated[str, typer.Option(help="Seed of the noise, or published.")] = "96",
    cache: CacheOption = None,
    image_backbone: Annotated[str | None, typer.Option(help="For cluster, where there are several.")] = None,
    clusters: Annotated[
        int | None, typer.Option(help="For cluster: how many; the square root of the images.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw noise for a training split and write it as an index file.

    One image a caption, int64, the first five captions of each image: what `train --noise-file` takes.
    """
    from itmfeat.api import noise_index, true_correspondence
    from itmfeat.noise import facts, fixed_points, write

    made, number = noise_index(
        noise, protocol, seed, cache=cache, image_backbone=image_backbone, groups=clusters
    )
    write(output, made.caption_image)
    true = true_correspondence(cache)
    asked = {"protocol": protocol, "ratio": noise, "seed": number}
    drawn = fixed_points(made, true, protocol, noise, number)
    _print({"file": str(output), **asked, **facts(made, true), **drawn}, as_json)


@command(noise_app)
def inspect(
    file: Annotated[Path, typer.Argument(help="An .npy index file.")],
    cache: Annotated[Path | None, typer.Option(help="A cache whose training split it is for.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Training images, instead of a cache.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the kind, the rate and the origin of an index file.

    Files with the length of a published one need neither --cache nor --images.
    """
    from itmfeat.api import true_correspondence
    from itmfeat.errors import UsageError
    from itmfeat.noise import inspect as look

    if cache is not None and images is not None:
        raise UsageError("--cache and --images exclude each other; give one of them")
    _print(look(file, None if cache is None else true_correspondence(cache), images), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    """The facts of an index, a line each; shares in percent."""
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if name in ("effective", "images_clean", "images_noisy"):
            shown = f"{100 * value:.2f} %"
        else:
            shown = ("no", "yes")[value] if isinstance(value, bool) else value
        if shown is not None:
            print(f"{TITLES.get(name, name):24} {shown}")


TITLES = {
    "fixed_points": "chosen, but unmoved",
    "chosen": "captions chosen",
    "moved": "captions moved",
    "effective": "effective noise",
    "images_clean": "images all clean",
    "images_noisy": "images all noisy",
    "images_without_caption": "images without caption",
    "same_counts": "can share a stack",
    "digest": "sha256 of the numbers",
    "blob": "git blob of the file",
    "published": "published as",
}
"""What a fact is called on the terminal, where its key does not say it."""


@command(noise_app)
def published(
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where the files go.")] = Path(
        "data/noise_index"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write the eight published index files, bit for bit.

    Caption-level noise for the full Flickr30K and COCO training splits. Both digests of each are checked.
    """
    from itmfeat.errors import ItmfeatError
    from itmfeat.noise import publish

    rows = publish(folder)
    if as_json:
        print_json(rows)
    else:
        print(f"{'file':21} {'noise':5} {'seed':>4} {'moved':>6} {'git blob':40} {'sha256':16} ok")
        for row in rows:
            print(
                f"{row['name']:21} {row['ratio']:<5g} {row['seed']:4} {row['moved']:6} {row['blob']} "
                f"{row['digest']} {'yes' if row['ok'] else 'NO'}"
            )
    wrong = [row["name"] for row in rows if not row["ok"]]
    if wrong:
        raise ItmfeatError(f"this numpy regenerates other bytes for {', '.join(wrong)}; they are not written")
