"""Commands about features: extract, and what lies in a cache."""

from pathlib import Path
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import CacheOption, JsonOption, app, cache_app, command, print_json

TextOption = Annotated[str, typer.Option(help="See `itmfeat backbones`. Without text: none.")]
LayersOption = Annotated[str | None, typer.Option(help="-2, mean:-1,-2 or concat:-1,-4; else the last.")]
IMPORTS = "precomp (a SCAN folder), tsv, npz, clip-retrieval or archive."
EXPORTS = "precomp (a SCAN folder), clip-retrieval or archive."

_NOT_FOR_EXTRACT = {"val_fraction", "test_fraction", "split_seed", "as_json"}

WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="On one device, threads that decode images; of several GPUs how many, a process each (all); "
        "with --engine ray, tasks at once."
    ),
]
DevicesOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N, or several, a process each: cuda:0,cuda:2.")
]
PrecisionOption = Annotated[
    str | None, typer.Option(help="Of the forward pass: float32, bfloat16 or float16 (a GPU's default).")
]
EngineOption = Annotated[str, typer.Option(help="local, or ray: on the machines of a Ray cluster.")]


@command(app)
def extract(
    dataset: Annotated[
        str, typer.Argument(help="A reader (data/README.md has them), or a cache folder (text alone).")
    ],
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; data/DATASET.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache folder; caches/DATASET.")] = None,
    image_backbone: Annotated[
        str | None, typer.Option(help="See `itmfeat backbones`; efficientnet-lite0. Without images: none.")
    ] = None,
    text_backbone: TextOption = "minilm-l6",
    tokens: Annotated[str, typer.Option(help="all, pooled, grid:HxW, or topk:N of a detector.")] = "all",
    image_size: Annotated[int | None, typer.Option(help="Pixels an edge; as the backbone says.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop or squash; as the backbone says.")] = None,
    layers: LayersOption = None,
    text_layers: LayersOption = None,
    dtype: Annotated[str, typer.Option(help="float16, float32 or int8.")] = "float16",
    limit: Annotated[int | None, typer.Option(help="Only so many images, of all splits.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of a dataset in a general layout.")] = None,
    on_error: Annotated[str, typer.Option(help="At an unreadable image: stop or skip.")] = "stop",
    workers: WorkersOption = None,
    val_fraction: Annotated[float | None, typer.Option(help="Where there is no such split.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Where there is no such split.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of a split by fractions.")] = None,
    device: DevicesOption = "auto",
    precision: PrecisionOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="By torch.compile: a slow first batch.")
    ] = False,
    engine: EngineOption = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Extract frozen features of a dataset into a cache.

    What is there already is kept; what was interrupted is resumed, to the same bytes. Of a cache folder, as
    one that was imported, the captions are extracted into it.
    """
    settings = {key: value for key, value in locals().items() if key not in _NOT_FOR_EXTRACT}

    from itmfeat.console import Meter, note
    from itmfeat_extract.corpus import SplitFractions
    from itmfeat_extract.extraction import extract as run
    from itmfeat_extract.launch import launched

    if asked := _given(val=val_fraction, test=test_fraction, seed=split_seed):
        settings["fractions"] = SplitFractions(**{"val": None, "test": None} | asked)
    with Meter() as meter:
        made = run(**settings, progress=meter.count, note=note)
    if not launched().rank:  # of several copies of this command the first speaks
        _print_made(made, as_json)


def _print_made(made: Any, as_json: bool) -> None:
    """The folder of an extraction, or the plan of a dry run."""
    if isinstance(made, Path):
        _print_info(made, as_json)
    elif as_json:
        print_json(vars(made))
    else:
        print("\n".join(f"{name.replace('_', ' '):15} {value}" for name, value in vars(made).items()))


@command(cache_app, "info")
def cache_info(
    path: Annotated[Path | None, typer.Argument(help="Cache folder; the only one in ./caches.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a cache holds."""
    from itmfeat.cache import find_cache

    _print_info(find_cache(path), as_json)


@command(cache_app, "import")
def cache_import(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=IMPORTS)],
    source: Annotated[Path, typer.Argument(help="What to import.")],
    cache: Annotated[
        Path | None, typer.Option(help="Cache folder; caches/NAME, or the only one in ./caches.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    backbone: Annotated[str | None, typer.Option(help="What the features are called.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, float32 or int8.")] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="clip-retrieval: where no column says the split.")
    ] = None,
    test_fraction: Annotated[float | None, typer.Option(help="The same.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of a split by fractions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Import features of another project, or unpack an archive.

    Repeating an interrupted import goes on where it was.
    """
    from itmfeat.cache.formats import bring
    from itmfeat.console import note

    options = _given(
        name=name,
        backbone=backbone,
        dtype=dtype,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    _print_info(bring(form, source, cache, note=note, **options), as_json)


@command(cache_app, "export")
def cache_export(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=EXPORTS)],
    target: Annotated[Path, typer.Argument(help="What to write.")],
    cache: CacheOption = None,
    image_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    text_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    redundant: Annotated[
        bool | None, typer.Option("--redundant", help="precomp: store dev and test images five times.")
    ] = None,
    level: Annotated[int | None, typer.Option(help="archive: compression, 1 (quick) to 19.")] = None,
) -> None:
    """Export a cache for the loaders of another project, or pack it into an archive."""
    from itmfeat.cache import find_cache
    from itmfeat.cache.formats import send
    from itmfeat.console import note

    options = _given(
        image_backbone=image_backbone, text_backbone=text_backbone, redundant=redundant, level=level
    )
    print(send(form, find_cache(cache), target, note=note, **options))


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: a format takes only some of them."""
    return {key: value for key, value in options.items() if value is not None}


def _print_info(path: Path, as_json: bool) -> None:
    from itmfeat.cache import describe, open_cache

    found = describe(open_cache(path))
    if as_json:
        print_json(found)
        return
    print(f"{found['path']}: {found['dataset']}, digest {found['digest'][:12]}")
    for split, (images, captions) in found["splits"].items():
        print(f"  {split:5} {images} images, {captions} captions")
    for file in found["features"]:
        print(
            f"  {file['kind']:5} {file['name']}: {file['items']} items, {file['vectors']} vectors x "
            f"{file['dim']} {file['dtype']}, {file['bytes'] / 1e6:.1f} MB, digest {file['digest'][:12]}"
        )
        if missing := file["missing"]:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            print(f"        missing: {len(missing)} items that could not be read: {names}")
    for state in ("unfinished", "damaged"):
        for text in found[state]:
            print(f"  {state}: {text}")


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
        print_json({"damaged": damaged})
    elif not damaged:
        print("every byte is as it was written")
    if damaged:
        raise DataError("; ".join(damaged))
