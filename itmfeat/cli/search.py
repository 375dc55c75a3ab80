"""The command that asks a run something new."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import DeviceOption, JsonOption, app, command, print_json


@command(app)
def search(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    query: Annotated[str, typer.Argument(help="A sentence, which finds images, or a picture: captions.")],
    top: Annotated[int, typer.Option(help="How many hits.")] = 10,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    cache: Annotated[Path | None, typer.Option(help="Where the run's cache is now.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The query's backbone, where its name does not lead to it: hf:FOLDER.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show the hits in the browser.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write that page to a file.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Its pictures: the dataset's folder; data/DATASET.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find images by a sentence, or captions by a picture.

    The query goes through the frozen backbone that made the cache, and through the run's heads.
    """
    from itmfeat.console import note
    from itmfeat.queries import search as run_search
    from itmfeat.queries import write_page
    from itmfeat.report.output import check_folder

    if output is not None:
        check_folder(output)
    found = run_search(
        run, query, top=top, split=split, cache=cache, backbone=backbone, device=device, note=note
    )
    if show and output is None:
        output = Path(tempfile.mkdtemp(prefix="itmfeat-")) / "search.html"
    if output is not None:
        note(f"the page is {write_page(found, output, images, note)}")
    if as_json:
        print_json(found)
    else:
        _print_hits(found)
    if show and output is not None:
        _show(output)


def _print_hits(found: dict[str, Any]) -> None:
    """A line a hit: rank, score, file, and the caption, of an image its first."""
    width = max((len(hit["image_file"]) for hit in found["hits"]), default=0)
    for hit in found["hits"]:
        caption = hit["caption"] if "caption" in hit else hit["captions"][0]
        line = f"{hit['rank']:>4} {hit['score']:7.3f}  {hit['image_file']:{width}}  {caption}"
        print("".join(letter if letter.isprintable() else " " for letter in line))  # no codes for the screen


def _show(page: Path) -> None:
    """Open a page in the browser, or say that there is none."""
    import webbrowser

    from itmfeat.console import note

    if not webbrowser.open(page.resolve().as_uri()):
        note(f"there is no browser to open {page} with")
