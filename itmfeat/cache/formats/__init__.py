"""Features of other projects, to and from a cache; one module a format.

To add one, write `read(source, cache, *, note, ...)` or `write(cache, target, *, note, ...)` in a module of
its own and add it to `IMPORTS` or `EXPORTS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from itmfeat.cache.folder import find_cache
from itmfeat.cache.formats import archive, clip_retrieval, npz, precomp, tsv
from itmfeat.errors import Note, silent, unknown
from itmfeat.parameters import defaults

IMPORTS: dict[str, Callable[..., Path]] = {
    "precomp": precomp.read,
    "tsv": tsv.read,
    "npz": npz.read,
    "clip-retrieval": clip_retrieval.read,
    "archive": archive.read,
}
"""(source, cache, *, note, **options) -> the cache folder; `note` is told what is worth knowing."""

EXPORTS: dict[str, Callable[..., Path]] = {
    "precomp": precomp.write,
    "clip-retrieval": clip_retrieval.write,
    "archive": archive.write,
}
"""(cache, target, *, note, **options) -> what was written; `note` is told what was left out."""


def bring(
    name: str,
    source: Path,
    cache: Path | None = None,
    /,
    *,
    note: Note = silent,
    **options: Any,
) -> Path:
    """Import features into a cache folder; unknown formats and options are an error.

    By default the folder is caches/NAME for a format that makes an index (an archive: caches/ and the name of
    its folder), else the only cache there is.
    """
    read = _chosen("import", IMPORTS, name, options)
    dataset = source.resolve().name if read is archive.read else (defaults(read) | options).get("name")
    made = Path("caches") / dataset if dataset else None
    return read(source, cache or made or find_cache(None), note=note, **options)


def send(
    name: str,
    cache: Path,
    target: Path,
    /,
    *,
    note: Note = silent,
    **options: Any,
) -> Path:
    """Export a cache; unknown formats and options are an error."""
    return _chosen("export", EXPORTS, name, options)(cache, target, note=note, **options)


def _chosen(
    way: str, formats: dict[str, Callable[..., Path]], name: str, options: dict[str, Any]
) -> Callable[..., Path]:
    if name not in formats:
        raise unknown(f"format to {way}", name, list(formats))
    known = defaults(formats[name], {"note"})
    for option in options:
        if option not in known:
            raise unknown(f"parameter of {name}", option, list(known))
    return formats[name]
