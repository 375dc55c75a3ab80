"""A cache folder: one index and any number of image and text feature files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.cache.index import DatasetIndex, read_index
from itmfeat.cache.reader import FeatureFile, damage
from itmfeat.errors import DataError, UsageError, unknown


class Cache:
    """An opened cache folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: DatasetIndex = read_index(path / "dataset.h5")

    def backbones(self, kind: str) -> list[str]:
        """Names of the finished feature files of a kind, "image" or "text"."""
        return sorted(file.stem for file in (self.path / kind).glob("*.h5"))

    def unfinished(self) -> list[Path]:
        """Feature files whose extraction was interrupted."""
        return sorted(self.path.glob("*/*.h5.part"))

    def choose(self, kind: str, name: str | None = None) -> str:
        """The named backbone, or the only one there is."""
        names = self.backbones(kind)
        if name is not None and name not in names:
            if (self.path / kind / f"{name}.h5.part").exists():
                raise DataError(f"{self.path}: {name} is not finished; repeat the extraction")
            raise unknown(f"{kind} backbone in {self.path}", name, names)
        if not names:
            raise DataError(f"{self.path} holds no finished {kind} features; run `itmfeat extract`")
        if name is None and len(names) > 1:
            raise UsageError(f"choose --{kind}-backbone: {self.path} holds {', '.join(names)}")
        return name or names[0]

    def open(self, kind: str, name: str | None = None) -> FeatureFile:
        """The feature file of a backbone."""
        path = self.path / kind / f"{self.choose(kind, name)}.h5"
        found = FeatureFile(path, self.index.digest)
        items = self.index.images if kind == "image" else self.index.captions
        if found.attributes["kind"] != kind or len(found) != items:
            raise DataError(f"{path} does not hold the {kind} features of {self.index.name}")
        return found

    def missing(self) -> NDArray[np.int64]:
        """Rows of the images that have no vectors in one of the image files, ascending."""
        files = [self.open("image", name) for name in self.backbones("image")]
        return np.unique(np.concatenate([np.empty(0, np.int64), *(file.empty for file in files)]))


def open_cache(path: str | Path) -> Cache:
    """Open a cache folder; a DataError in one sentence if it is none or does not hold together."""
    return Cache(Path(path))


def _opened(cache: Cache) -> tuple[list[FeatureFile], list[str]]:
    """All finished feature files, and a sentence for each that cannot be opened."""
    files, damaged = [], []
    for kind in ("image", "text"):
        for name in cache.backbones(kind):
            try:
                files.append(cache.open(kind, name))
            except DataError as error:
                damaged.append(str(error))
    return files, damaged


def describe(cache: Cache) -> dict[str, Any]:
    """What a cache holds, as plain data: splits, feature files, what is unfinished or damaged."""
    files, damaged = _opened(cache)
    return {
        "path": str(cache.path),
        "dataset": cache.index.name,
        "digest": cache.index.digest,
        "splits": cache.index.split_sizes(),
        "features": [
            {
                "kind": file.attributes["kind"],
                "name": file.path.stem,
                "items": len(file),
                "missing": [_id(cache, file, row) for row in file.empty.tolist()],
                "vectors": file.extents["features"].shape[0],
                "dim": file.dim,
                "dtype": file.attributes["dtype"],
                "tokens": file.attributes["tokens"],
                "bytes": file.path.stat().st_size,
                "digest": file.digest,
                "fingerprint": file.fingerprint,
            }
            for file in files
        ],
        "unfinished": [str(part) for part in cache.unfinished()],
        "damaged": damaged,
    }


def _id(cache: Cache, file: FeatureFile, row: int) -> str:
    """The dataset's own id of an item."""
    index = cache.index
    return index.image_id[row] if file.attributes["kind"] == "image" else str(index.caption_id[row])


def verify(path: Path) -> list[str]:
    """Compare every byte of a cache with its checksums; one sentence for each damage found."""
    cache = open_cache(path)  # opening checks the index, and each file its skeleton
    files, damaged = _opened(cache)
    if cache.index.recomputed_digest() != cache.index.digest:
        damaged.append(f"{path / 'dataset.h5'}: its digest is not that of its contents; make the cache again")
    damaged += _swapped(files)
    return damaged + [damage(file.path, items) for file in files for items in file.verify()]


def _swapped(files: list[FeatureFile]) -> list[str]:
    """A sentence for each file that has the name of another one's backbone, and the other one has its."""
    named = {(file.attributes["kind"], file.path.stem.split("@")[0]): file for file in files}
    held = {key: re.sub(r"[^\w.]+", "-", str(file.attributes.get("backbone"))) for key, file in named.items()}
    return [
        f"{file.path} holds the features of {held[kind, name]}; give both files their names back"
        for (kind, name), file in named.items()
        if held[kind, name] != name and held.get((kind, held[kind, name])) == name
    ]


def find_cache(path: Path | None, parent: Path = Path("caches")) -> Path:
    """The cache to use: the one given, else the only one in ./caches; the demo's counts if it is alone."""
    if path is not None:
        return path
    found = sorted(index.parent for index in parent.glob("*/dataset.h5"))
    found = [folder for folder in found if folder.name != "demo"] or found
    if not found:
        raise DataError(f"there is no cache in ./{parent}; run `itmfeat extract DATASET` first")
    if len(found) > 1:
        raise UsageError(f"choose one cache with --cache: {', '.join(map(str, found))}")
    return found[0]
