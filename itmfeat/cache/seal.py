"""Checksums: SHA-256 of each range of each payload (128 bits of it), and over all between the payloads.

Together they cover every byte of a file. The seal covers the table of checksums, so it is also the
digest of the whole file, and comparing it costs only the skeleton (kilobytes to a few megabytes).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from itmfeat.cache.schema import CHECKSUM_BYTES, SEAL_BYTES, Extent
from itmfeat.errors import DataError

_STEP = 1 << 20


def checksum(data: "memoryview | bytes") -> bytes:
    """The first 128 bits of the SHA-256 of raw bytes: most processors have instructions for it."""
    return hashlib.sha256(data).digest()[:CHECKSUM_BYTES]


def checksum_at(descriptor: int, start: int, stop: int) -> bytes:
    """The checksum of the bytes [start, stop) of an open file."""
    digest = hashlib.sha256()
    for position in range(start, stop, _STEP):
        digest.update(os.pread(descriptor, min(_STEP, stop - position), position))
    return digest.digest()[:CHECKSUM_BYTES]


def skeleton_spans(path: Path, payloads: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Start and stop of the bytes between the payloads."""
    position = 0
    for extent in sorted(payloads, key=lambda payload: payload.offset):
        yield position, extent.offset
        position = extent.offset + extent.nbytes
    yield position, path.stat().st_size


def skeleton_digest(path: Path, payloads: Iterable[Extent], seal: Extent) -> bytes:
    """SHA-256 of all bytes outside the payloads, the seal itself read as zeros."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start, stop in skeleton_spans(path, payloads):
            for position in range(start, stop, _STEP):
                part = bytearray(os.pread(file.fileno(), min(_STEP, stop - position), position))
                first = max(seal.offset - position, 0)
                last = min(seal.offset + SEAL_BYTES - position, len(part))
                if first < last:
                    part[first:last] = bytes(last - first)
                digest.update(part)
    return digest.digest()


def write_seal(path: Path, payloads: Iterable[Extent], seal: Extent) -> None:
    """Seal a file whose every other byte is in place, and push it to the disk."""
    digest = skeleton_digest(path, payloads, seal)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, digest, seal.offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_seal(path: Path, payloads: Iterable[Extent], seal: Extent) -> str:
    """The seal as hexadecimal text; a DataError if the skeleton does not match it."""
    with path.open("rb") as file:
        stored = os.pread(file.fileno(), SEAL_BYTES, seal.offset)
    if stored != skeleton_digest(path, payloads, seal):
        raise DataError(
            f"{path} is damaged outside its features; delete it and extract again, or copy it again"
        )
    return stored.hex()


def payload_slices(
    payloads: Mapping[str, Extent], first: int, last: int, vectors: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Byte positions of items [first, last) in each payload; `vectors` are their first and last vector."""
    per_item = {"pooled"}
    return {
        name: (extent.row(first), extent.row(last))
        if name in per_item
        else (extent.row(vectors[0]), extent.row(vectors[1]))
        for name, extent in payloads.items()
    }
