"""A cache packed for a hub or a shelf: compressed HDF5 files that unpack to the same bytes.

An archive is a folder like the cache, with `NAME.archive.hdf5` for each `NAME.h5`; `itmfeat/cache/README.md`
has the layout. A file from a stranger may hold nothing but what is packed here: one filter pipeline, and
chunks whose unpacked size is known before they are unpacked.
"""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product, repeat
from pathlib import Path

import h5py
import numpy as np

from itmfeat.cache import schema, seal
from itmfeat.cache.folder import Cache, open_cache
from itmfeat.cache.index import DatasetIndex, read_index
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.schema import Extent
from itmfeat.errors import DataError, ItmfeatError, MissingPackageError, Note, UsageError, disk_full, silent
from itmfeat.locks import lock_file

LAYOUT = 1
"""Version of the archive's layout."""

ENDING = ".archive.hdf5"
CHUNK = 1 << 20  # bytes, at the most: what has to fit in memory to unpack
BLOCK = 8 * CHUNK  # bytes that are read and written at once
SHUFFLE, ZSTD = 2, 32015  # filters of HDF5, by their registered numbers
LEVELS = range(1, 20)
SKELETON = "skeleton"


def write(cache: Path, target: Path, *, note: Note = silent, level: int = 1) -> Path:
    """Pack all finished files of a cache into a folder: bytes shuffled, then Zstandard of level 1 to 19.

    Packed files that are there already and hold the same are kept, so an interrupted export goes on, and a
    new backbone can be added; others are an error. `dataset.archive.hdf5` comes last: without it nothing is
    unpacked.
    """
    if level not in LEVELS:
        raise UsageError(f"--level must be {LEVELS[0]} to {LEVELS[-1]}, not {level}")
    _require_zstd()
    found = open_cache(cache)
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file; name a folder")
    if _digest(target / f"dataset{ENDING}") not in {None, found.index.digest}:
        raise DataError(
            f"{target} holds the archive of another dataset; name a new folder, or remove that one"
        )
    for kind in ("image", "text"):
        for name in found.backbones(kind):
            file = found.open(kind, name)
            packed = target / kind / f"{name}{ENDING}"
            if _digest(packed) not in {None, file.digest}:
                raise DataError(f"{packed} holds other features; name another folder, or remove that file")
            if not packed.exists():
                file.check()
                _pack(file.path, packed, file.extents, file.digest, level)
    if left := found.unfinished():
        note(f"left out, as they are not finished: {', '.join(map(str, left))}")
    if not (index := target / f"dataset{ENDING}").exists():
        _pack(cache / "dataset.h5", index, {}, found.index.digest, level)
    return target


def read(source: Path, cache: Path, *, note: Note = silent) -> Path:
    """Unpack an archive into a cache with the same bytes; every checksum is compared before a file appears.

    Files that are there already and hold the same are kept, so an interrupted import goes on; others are an
    error.
    """
    _require_zstd()
    if not (source / f"dataset{ENDING}").exists():
        raise DataError(
            f"{source} is no whole archive: it has no dataset{ENDING}; name the folder that holds it, "
            "or repeat its export or download"
        )
    index = _unpack_index(source / f"dataset{ENDING}", cache / "dataset.h5")
    for kind in ("image", "text"):
        for packed in sorted((source / kind).glob(f"*{ENDING}")):
            path = cache / kind / f"{packed.name.removesuffix(ENDING)}.h5"
            if path.exists():
                if FeatureFile(path, index.digest).digest != _digest(packed):
                    raise DataError(f"{path} holds other features than {packed}; choose another --cache")
                note(f"{path}: kept, it holds the same as {packed}")
                continue
            with _appearing(path) as part:
                _unpack(packed, part)
                _check(part, packed, kind, index)
    Cache(cache)
    return cache


def _require_zstd() -> None:
    """hdf5plugin brings Zstandard to HDF5."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "archives are compressed, which needs hdf5plugin: pip install 'itmfeat[archive]'"
        ) from error


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, pushed to the disk and renamed to it at the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.partial")
    descriptor = lock_file(part, os.O_RDWR | os.O_CREAT, f"another process is writing {path}")
    try:
        os.ftruncate(descriptor, 0)  # what a kill may have left
        yield part
        os.fsync(descriptor)
        os.replace(part, path)
    except OSError as error:
        raise disk_full(error, path, ", it goes on from here") or error from None
    finally:
        part.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _opened(packed: Path) -> Iterator[h5py.File]:
    """Open an archive file; whatever HDF5 cannot make sense of, here or in the block, is a DataError."""
    try:
        with h5py.File(packed, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, ArithmeticError) as error:
        raise _damaged(packed) from error


def _damaged(packed: Path) -> DataError:
    return DataError(f"{packed} is damaged or no archive of itmfeat; export, copy or download it again")


def _digest(packed: Path) -> str | None:
    """What an archive file says that it holds; None if it is not there."""
    if not packed.exists():
        return None
    with _opened(packed) as file:
        return str(schema.attributes(file).get("digest", ""))


def _pack(path: Path, packed: Path, payloads: Mapping[str, Extent], digest: str, level: int) -> None:
    """Pack a sealed file of a cache."""
    filled = {name: extent for name, extent in payloads.items() if extent.nbytes}
    gaps = list(seal.skeleton_spans(path, filled.values()))
    skeleton = Extent(0, (sum(stop - start for start, stop in gaps),), np.dtype("u1"))
    with (
        _appearing(packed) as part,
        path.open("rb") as source,
        h5py.File(part, "w", libver=("v108", "v108"), locking=False) as file,
    ):
        schema.set_attributes(file, {"archive": LAYOUT, "digest": digest, "bytes": path.stat().st_size})
        for name, extent in {SKELETON: skeleton, **filled}.items():
            dataset = _dataset(file, name, extent, level)
            for first, rows, position in _blocks(dataset, gaps if name == SKELETON else [_span(extent)]):
                _check_room(part)
                raw = os.pread(source.fileno(), rows * _row_bytes(dataset), position)
                values = np.frombuffer(raw, extent.dtype).reshape(rows, *extent.shape[1:])
                dataset[first : first + rows] = values


def _dataset(file: h5py.File, name: str, extent: Extent, level: int) -> h5py.Dataset:
    row, size = extent.nbytes // extent.shape[0], extent.dtype.itemsize
    wide = tuple(min(length, CHUNK // size) for length in extent.shape[1:])
    chunk = (min(max(1, CHUNK // row), extent.shape[0]), *wide)
    filters = {"shuffle": True, "compression": ZSTD, "compression_opts": (level,)}
    dataset = file.create_dataset(
        name, extent.shape, extent.dtype, chunks=chunk, track_times=False, **filters
    )
    if name != SKELETON:
        dataset.attrs["offset"] = np.int64(extent.offset)
    return dataset


def _span(extent: Extent) -> tuple[int, int]:
    return extent.offset, extent.offset + extent.nbytes


def _row_bytes(dataset: h5py.Dataset) -> int:
    return int(math.prod(dataset.shape[1:]) * dataset.dtype.itemsize)


def _blocks(dataset: h5py.Dataset, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """First row, number of rows and place in the unpacked file of blocks of whole chunks."""
    row, step = _row_bytes(dataset), dataset.chunks[0]
    step *= max(1, BLOCK // (step * row))
    first = 0
    for start, stop in spans:
        for position in range(start, stop, step * row):
            rows = (min(position + step * row, stop) - position) // row
            yield first, rows, position
            first += rows


def _check_room(part: Path) -> None:
    """HDF5 may crash on a full disk, so there must be room for a block and to close the file before it."""
    if shutil.disk_usage(part.parent).free < 2 * BLOCK:
        raise ItmfeatError(
            f"the disk of {part} is full; make room and repeat the command, it goes on from here"
        )


def _unpack_index(packed: Path, path: Path) -> DatasetIndex:
    """`dataset.h5` of an archive; one that is there is kept if it holds the same."""
    if path.exists():
        if read_index(path).digest != _digest(packed):
            raise DataError(f"{path.parent} holds another dataset than {packed}; choose another --cache")
        return read_index(path)
    with _appearing(path) as part:
        _unpack(packed, part)
        try:
            read_index(part)
        except (DataError, KeyError, ValueError) as error:
            raise _damaged(packed) from error
    return read_index(path)


def _unpack(packed: Path, part: Path) -> None:
    """Write the bytes of an archive file in place."""
    with _opened(packed) as file, part.open("r+b") as target:
        facts = schema.attributes(file)
        if facts.get("archive") != LAYOUT:
            raise DataError(f"{packed} has layout {facts.get('archive')}, this version reads {LAYOUT}")
        found = {name: _plain(file, name, packed) for name in (SKELETON, *schema.PAYLOADS)}
        stored = {name: dataset for name, dataset in found.items() if dataset is not None}
        size = int(facts["bytes"])
        places = _spans(stored, size, packed)
        if (free := shutil.disk_usage(part.parent).free) < size:
            raise ItmfeatError(
                f"{part} needs {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on its disk; make room"
            )
        for name, spans in places.items():
            for first, rows, position in _blocks(stored[name], spans):
                _put(target.fileno(), stored[name][first : first + rows].tobytes(), position, part)


def _plain(file: h5py.File, name: str, packed: Path) -> h5py.Dataset | None:
    """A dataset as `_dataset` makes it, or None if it is not there.

    Anything else could make HDF5 load code, read other files or fill the memory.
    """
    dataset = schema.inside(file, name, packed)
    if dataset is None:
        return None
    plist = dataset.id.get_create_plist()
    chunked = plist.get_layout() == h5py.h5d.CHUNKED and not plist.get_external_count()
    if not chunked or [plist.get_filter(i)[0] for i in range(plist.get_nfilters())] != [SHUFFLE, ZSTD]:
        raise DataError(
            f"{packed}: {name} is not stored in chunks with shuffle and Zstandard, and is not read"
        )
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    types = {"uint8"} if name == SKELETON else {*schema.DTYPES, "int32"}  # of labels
    if str(dataset.dtype) not in types or not dataset.size or not 0 < size <= CHUNK:
        raise _damaged(packed)
    with packed.open("rb") as raw:
        for corner in product(*map(range, repeat(0), dataset.shape, dataset.chunks)):
            chunk = dataset.id.get_chunk_info_by_coord(corner)
            head = os.pread(raw.fileno(), 18, chunk.byte_offset)
            if chunk.filter_mask or chunk.size > 2 * CHUNK or _unpacked_bytes(head) != size:
                raise _damaged(packed)
    return dataset


def _unpacked_bytes(head: bytes) -> int | None:
    """The size that a Zstandard frame says to have unpacked (RFC 8878, 3.1.1.1); None if it does not say it.

    The library unpacks exactly so many bytes or fails, so this is what keeps a chunk from filling the memory.
    """
    if len(head) < 18 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flags = head[4]
    single = flags >> 5 & 1  # one segment: no byte for the window
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not width:
        return None
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)


def _spans(stored: dict[str, h5py.Dataset], size: int, packed: Path) -> dict[str, list[tuple[int, int]]]:
    """Where the bytes of each dataset go; together they must make the whole file, each byte once."""
    spans = {}
    for name in stored.keys() - {SKELETON}:
        start = int(stored[name].attrs["offset"])
        spans[name] = [(start, start + stored[name].shape[0] * _row_bytes(stored[name]))]
    edges = [0, *(edge for span in sorted(spans.values()) for edge in span[0]), size]
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    whole = sum(stop - start for start, stop in gaps)
    if SKELETON not in stored or edges != sorted(edges) or stored[SKELETON].shape != (whole,):
        raise _damaged(packed)
    return {SKELETON: gaps, **spans}


def _put(descriptor: int, raw: bytes, position: int, part: Path) -> None:
    left = memoryview(raw)
    try:
        while left:
            written = os.pwrite(descriptor, left, position)
            left, position = left[written:], position + written
    except OSError as error:
        full = disk_full(error, part, ", it goes on from here")
        raise full or ItmfeatError(f"{part} cannot be written: {error.strerror}") from None


def _check(part: Path, packed: Path, kind: str, index: DatasetIndex) -> None:
    """The unpacked file must be whole, undamaged and of the index."""
    try:
        file = FeatureFile(part)
        broken = bool(file.verify())
    except (DataError, ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise _damaged(packed) from error
    if broken:
        raise _damaged(packed)
    items = index.images if kind == "image" else index.captions
    if (file.attributes["dataset"], file.attributes["kind"], len(file)) != (index.digest, kind, items):
        raise DataError(
            f"{packed} does not hold {kind} features of {index.name}; take all files of one archive"
        )
