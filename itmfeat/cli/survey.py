"""Commands that list what there is: losses, backbones, this machine."""

import json
from typing import Annotated, Any

import typer

from itmfeat.cli.shell import CacheOption, DeviceOption, JsonOption, app, command, print_json


@command(app)
def losses(
    family: Annotated[str | None, typer.Argument(help="The first word of the names, as in goal.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the losses: equations, sources, defaults."""
    from itmfeat.errors import unknown
    from itmfeat.losses import LOSSES, parameters

    families = {name: name.split("-")[0] for name in LOSSES}
    if family is not None and family not in families.values():
        raise unknown("family of losses", family, list(dict.fromkeys(families.values())))
    chosen = {name: loss for name, loss in LOSSES.items() if family in {None, families[name]}}
    if as_json:
        facts = {
            name: {"equation": loss.equation, "source": loss.source, "robust": loss.robust}
            for name, loss in chosen.items()
        }
        print_json([{"name": name, **facts[name], "parameters": parameters(name)} for name in chosen])
        return
    width = max(map(len, chosen)) + 1
    for name, loss in chosen.items():
        defaults = " ".join(f"{key}={json.dumps(value)}" for key, value in parameters(name).items())
        method = "" if loss.robust == "none" else f"; robust method {loss.robust}"
        print(f"{name:{width}} {loss.equation}\n{'':{width}} {loss.source}; {defaults}{method}")


@command(app)
def robust(as_json: JsonOption = False) -> None:
    """List the methods of robust training: mechanisms, sources, defaults."""
    from itmfeat.robust import METHODS, parameters

    if as_json:
        facts = {name: {"mechanism": one.mechanism, "source": one.source} for name, one in METHODS.items()}
        print_json([{"name": name, **facts[name], "parameters": parameters(name)} for name in METHODS])
        return
    for name, one in METHODS.items():
        defaults = " ".join(f"{key}={json.dumps(value)}" for key, value in parameters(name).items())
        print(
            f"{name:8} {one.mechanism}\n{'':8} {'; '.join(part for part in (one.source, defaults) if part)}"
        )


@command(app)
def backbones(as_json: JsonOption = False) -> None:
    """List the frozen encoders that have a name, and what they take of the disk for COCO.

    That is every vector of 123,287 images or 616,767 captions (of 14 tokens on the average) in float16;
    `extract --tokens` keeps less.
    """
    from itmfeat_extract.backbones import PRESETS, coco_bytes

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": preset.kind,
            "tokens": preset.tokens,
            "licence": preset.licence,
            "coco_bytes": coco_bytes(preset),
            "source": preset.source,
        }
        for name, preset in PRESETS.items()
    ]
    if as_json:
        print_json(rows)
        return
    print(f"{'name':19} {'kind':6} {'tokens':10} {'COCO':>9}  {'licence':14} source")
    for row in rows:
        size = f"{row['coco_bytes'] / 1e9:.1f} GB"
        start = f"{row['name']:19} {row['kind']:6} {row['tokens']:10} {size:>9}"
        print(f"{start}  {row['licence']:14} {row['source']}")
    print("hf:ID_OR_FOLDER     any transformers vision encoder, detector or text encoder of a known family")
    print(
        "timm:NAME           any image encoder of timm, as timm:resnet50.a1_in1k: pip install 'itmfeat[timm]'"
    )


@command(app)
def doctor(as_json: JsonOption = False) -> None:
    """Show versions, devices, FAISS and disk."""
    from itmfeat.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
    else:
        print("\n".join(f"{name:14} {value}" for name, value in found.items()))


@command(app)
def bench(
    cache: CacheOption = None,
    image_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    text_backbone: Annotated[str | None, typer.Option(help="Where the cache has several.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs in a batch.")] = 128,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure what bounds training on this machine and cache: each speed beside its limit."""
    from itmfeat.bench import measure
    from itmfeat.cache import find_cache
    from itmfeat.console import note
    from itmfeat.features import open_features

    features = open_features(find_cache(cache), image_backbone, text_backbone)
    found = measure(features, batch_size=batch_size, device=device, note=note)
    if as_json:
        print_json(found)
        return
    gather, evaluation = found["gather"], found["evaluation"]
    print(
        f"{found['cache']}: {found['image']}, {found['text']}; {found['device']}, {found['threads']} threads"
    )
    print(f"gathering {batch_size} shuffled images, {gather['batch_mb']:.1f} MB")
    for name, title in (("cache", "from the cache"), ("memory", "from memory"), ("h5py", "DataLoader, h5py")):
        print(f"  {title:17} {gather[name]['ms']:9.2f} ms {gather[name]['gb_per_s']:7.2f} GB/s")
    print(f"  {gather['of_memory']:.2f} of memory, {gather['over_h5py']:.1f} times the DataLoader")
    print(f"  checksums, once   {gather['check']['gb_per_s']:20.2f} GB/s")
    for kind, one in found["step"].items():
        print(
            f"training step, {kind} ({one['head']}): {one['cache_ms']:.2f} ms from the cache, "
            f"{one['memory_ms']:.2f} ms on memory, ratio {one['over_memory']:.2f}; "
            f"an epoch {one['epoch_seconds']:.0f} s"
        )
    print("evaluation of {images} x {captions}: {evaluation_ms:.1f} ms,".format(**evaluation), end=" ")
    print(f"{evaluation['products']:.2f} matrix products")
    print("\n".join(found["verdict"]))
