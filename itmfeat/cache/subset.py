"""Caches from caches: some images of one, or several with different images as one. Values stay the same."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache import schema
from itmfeat.cache.folder import Cache, open_cache
from itmfeat.cache.index import SPLITS, DatasetIndex, write_index
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.rewrite import Ints, Payloads, spec_of, stored, write
from itmfeat.errors import DataError, Note, UsageError, silent, unknown

_COUNTED = "truncated"  # key of a fingerprint that counts captions instead of deciding their values


@dataclass(frozen=True)
class _Part:
    """A cache and what is taken of it."""

    cache: Cache
    images: Ints  # rows, ascending
    captions: Ints  # rows of all captions of these images, ascending


def subset(
    cache: Path,
    target: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    seed: int = 0,
    note: Note = silent,
) -> Path:
    """A new cache in `target` with the images of a split, or `images` drawn images with all their captions.

    Without a split the images are drawn of each split in proportion, at least one of each where possible. One
    seed draws of a split in one order: more images contain fewer. The order of the cache stays.
    """
    if split is None and images is None:
        raise UsageError("say which images: --split train, val or test, --images N, or both")
    if split is not None and split not in SPLITS:
        raise unknown("split", split, list(SPLITS))
    _apart([cache], target)
    found = open_cache(cache)
    rows = _drawn(found, split, images, seed)
    captions = np.flatnonzero(np.isin(found.index.caption_image, rows))
    return _write([_Part(found, rows, captions)], target, note)


def merge(caches: Sequence[Path], target: Path, *, note: Note = silent) -> Path:
    """A new cache in `target` with the images of all caches, one cache after another.

    They hold different images of one dataset and the same backbones. Where caption ids of two caches are
    equal, they were running numbers, and are numbered anew.
    """
    if len(caches) < 2:
        raise UsageError("name two caches or more to merge")
    _apart(caches, target)
    parts = []
    for path in caches:
        found = open_cache(path)
        parts.append(_Part(found, np.arange(found.index.images), np.arange(found.index.captions)))
    names = {part.cache.index.name for part in parts}
    if len(names) > 1:
        raise DataError(f"caches of different datasets ({', '.join(sorted(names))}) cannot be merged")
    _check_disjoint(parts)
    return _write(parts, target, note)


def _apart(caches: Sequence[Path], target: Path) -> None:
    if target.resolve() in {path.resolve() for path in caches}:
        raise UsageError(f"{target} is a cache to read from; name another folder for the new one")


def _drawn(cache: Cache, split: str | None, images: int | None, seed: int) -> Ints:
    """Rows of the chosen images, ascending."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must lie between 0 and {2**32 - 1}, not {seed}")
    rows = [
        np.flatnonzero(cache.index.image_split == code) if split in (None, name) else np.empty(0, np.int64)
        for code, name in enumerate(SPLITS)
    ]
    sizes = np.array([len(found) for found in rows])
    have, what = int(sizes.sum()), f"the {split} split of {cache.path}" if split else str(cache.path)
    if not have:
        raise DataError(f"{what} has no images; choose another --split")
    wanted = have if images is None else images
    if not 1 <= wanted <= have:
        raise UsageError(f"--images must be 1 to {have}, the images of {what}, not {wanted}")
    chosen = [
        # RandomState, because its stream is frozen: a seed means the same images under every NumPy.
        found[np.random.RandomState([seed, code]).permutation(len(found))[:share]]
        for code, (found, share) in enumerate(zip(rows, _shares(sizes, wanted), strict=True))
    ]
    return np.sort(np.concatenate(chosen))


def _shares(sizes: Ints, wanted: int) -> list[int]:
    """How many of `wanted` places each split gets: in proportion, one at least if there are enough places."""
    least = np.minimum(sizes, 1) if wanted >= np.count_nonzero(sizes) else np.zeros_like(sizes)
    exact = sizes * wanted / sizes.sum()
    shares = np.maximum(np.floor(exact).astype(np.int64), least)
    while shares.sum() < wanted:
        shares[np.argmax(np.where(shares < sizes, exact - shares, -np.inf))] += 1
    while shares.sum() > wanted:
        shares[np.argmax(np.where(shares > least, shares - exact, -np.inf))] -= 1
    return [int(share) for share in shares]


def _check_disjoint(parts: list[_Part]) -> None:
    owner: dict[str, Path] = {}
    for part in parts:
        ids = part.cache.index.image_id.tolist()
        if twice := [name for name in ids if name in owner]:
            raise DataError(
                f"{part.cache.path} and {owner[twice[0]]} both hold image {twice[0]}, and "
                f"{len(twice) - 1} more stand twice; merge caches of different images"
            )
        owner |= dict.fromkeys(ids, part.cache.path)


def _write(parts: list[_Part], target: Path, note: Note) -> Path:
    """Index and feature files of the parts, one part after another."""
    files = [(kind, name, _open(parts, kind, name)) for kind, name in _backbones(parts)]
    for part in parts:
        if left := part.cache.unfinished():
            note(f"left out, as they are not finished: {', '.join(map(str, left))}")
    digest = _write_index(parts, target, note)
    for kind, name, opened in files:
        rows = [part.images if kind == "image" else part.captions for part in parts]
        _copy(target / kind / f"{name}.h5", digest, list(zip(opened, rows, strict=True)), len(parts) > 1)
    return target


def _backbones(parts: list[_Part]) -> list[tuple[str, str]]:
    """Kind and name of every feature file; all parts must have the same."""
    names = [
        {(kind, name) for kind in ("image", "text") for name in part.cache.backbones(kind)} for part in parts
    ]
    for part, found in zip(parts, names, strict=True):
        if missing := sorted(set.union(*names) - found):
            kind, name = missing[0]
            raise DataError(
                f"{part.cache.path} has no {kind} features {name}, and another cache has; extract them"
            )
    return sorted(names[0])


def _open(parts: list[_Part], kind: str, name: str) -> list[FeatureFile]:
    """The file of each part, undamaged and made alike."""
    files = [part.cache.open(kind, name) for part in parts]
    wanted = _facts(files[0])
    for file in files:
        for key, value in _facts(file).items():
            if value != wanted[key]:
                raise DataError(
                    f"{file.path} and {files[0].path} differ in {key}; extract both in the same way"
                )
        file.check()
    return files


def _facts(file: FeatureFile) -> dict[str, Any]:
    """What must be equal in files that become one."""
    return {
        "fingerprint": {key: value for key, value in file.fingerprint.items() if key != _COUNTED},
        **{key: file.attributes[key] for key in ("dtype", "tokens", "kind")},
        "vectors or payloads": {name: extent.shape[1:] for name, extent in file.extents.items()},
    }


def _write_index(parts: list[_Part], target: Path, note: Note) -> str:
    indexes = [part.cache.index for part in parts]
    offsets = np.cumsum([0, *(len(part.images) for part in parts)])
    captions = [
        offset + np.searchsorted(part.images, part.cache.index.caption_image[part.captions])
        for offset, part in zip(offsets, parts, strict=False)
    ]
    ids = np.concatenate([part.cache.index.caption_id[part.captions] for part in parts])
    if len(parts) > 1 and len(np.unique(ids)) < len(ids):
        note("captions were numbered anew, for the caches give the same id to different captions")
        ids = np.arange(len(ids))
    columns: dict[str, NDArray[np.generic]] = {
        "image_split": np.concatenate([part.cache.index.image_split[part.images] for part in parts]),
        "caption_id": ids.astype(np.int64),
        "caption_image": np.concatenate(captions).astype(np.int64),
    }
    strings = {
        "image_id": _strings(parts, lambda index: index.image_id, lambda part: part.images),
        "image_file": _strings(parts, lambda index: index.image_file, lambda part: part.images),
        "caption": _strings(parts, lambda index: index.caption, lambda part: part.captions),
    }
    try:
        return write_index(target / "dataset.h5", indexes[0].name, strings, columns)
    except DataError:
        raise DataError(
            f"{target} already holds another dataset, or a damaged one; name another folder or delete it"
        ) from None


def _strings(
    parts: list[_Part], column: Callable[[DatasetIndex], schema.Strings], rows: Callable[[_Part], Ints]
) -> list[str]:
    return [column(part.cache.index)[int(row)] for part in parts for row in rows(part)]


def _copy(path: Path, dataset: str, sources: list[tuple[FeatureFile, Ints]], merged: bool) -> None:
    """Items of feature files, one file after another, as one file."""
    files = [file for file, _ in sources]
    spec = spec_of(
        files[0],
        dataset=dataset,
        lengths=np.concatenate([np.diff(file.offsets)[chosen] for file, chosen in sources]),
        fingerprint=_fingerprint(files, merged),
        versions=_versions(files),
    )
    starts = np.cumsum([0, *(len(chosen) for _, chosen in sources)])

    def values(items: range) -> Payloads:
        pieces = [
            stored(file, chosen[max(items.start - start, 0) : max(items.stop - start, 0)])
            for start, (file, chosen) in zip(starts, sources, strict=False)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in files[0].extents}

    write(path, spec, values)


def _fingerprint(files: list[FeatureFile], merged: bool) -> str:
    """That of the files; a count adds up over whole files, and of a subset it is not known."""
    found = dict(files[0].fingerprint)
    counts = [file.fingerprint.get(_COUNTED) for file in files]
    found.pop(_COUNTED, None)
    if merged and all(isinstance(count, int) for count in counts):
        found[_COUNTED] = sum(counts)
    return json.dumps(found, sort_keys=True)


def _versions(files: list[FeatureFile]) -> str:
    """Library versions of all files; "A, B" where they differ."""
    every = [dict(json.loads(str(file.attributes.get("versions", "{}")))) for file in files]
    names = sorted({name for versions in every for name in versions})
    joined = {
        name: ", ".join(sorted({str(found[name]) for found in every if name in found})) for name in names
    }
    return json.dumps(joined, sort_keys=True)
