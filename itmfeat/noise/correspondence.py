"""A noisy correspondence: drawn by a protocol or read from an index file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itmfeat.errors import DataError, UsageError, unknown
from itmfeat.noise.protocols import PROTOCOLS
from itmfeat.pairs import Ints


@dataclass(frozen=True)
class Noisy:
    """A noisy correspondence and what a table has to say about it."""

    caption_image: Ints  # (C,) the given image of each caption
    digest: str  # SHA-256 of the array as little-endian int64
    effective: float  # share of captions whose given image is not the true one


def checked(protocol: str, ratio: float) -> None:
    """A UsageError unless this is a noise that `corrupt` can draw."""
    if protocol == "cluster":
        raise UsageError(
            "noise protocol 'cluster' needs features: write an index with `itmfeat noise make --protocol "
            "cluster` and pass it as --noise-file"
        )
    if protocol not in PROTOCOLS:
        raise unknown("noise protocol", protocol, [*PROTOCOLS, "cluster"])
    if not 0 <= ratio < 1:
        raise UsageError(f"the noise ratio must lie in [0, 1), not {ratio:g}")


def corrupt(caption_image: Ints, protocol: str, ratio: float, seed: int) -> Noisy:
    """Apply a protocol at a noise ratio in [0, 1) to a true correspondence (C,)."""
    checked(protocol, ratio)
    return described(PROTOCOLS[protocol](caption_image, ratio, seed), caption_image)


def described(given: Ints, caption_image: Ints) -> Noisy:
    """A noisy correspondence with its digest and effective ratio."""
    return Noisy(given, array_digest(given), float(np.mean(given != caption_image)))


def array_digest(given: Ints) -> str:
    """SHA-256 of the numbers as little-endian int64, whatever file they came in."""
    return hashlib.sha256(np.ascontiguousarray(given, "<i8").tobytes()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of an index file, so that a run is tied to its content and not to its name."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} is no readable .npy file of integers") from error


def stored(path: Path) -> Ints:
    """The numbers of an `.npy` index file as they stand, (C,) or (I,)."""
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable .npy file of integers") from error
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(f"{path} holds {found.dtype} of shape {found.shape}, not a row of integers")
    if len(found) and int(found.max()) >= 2**63:
        raise DataError(f"{path} names images beyond any number of images")
    return np.asarray(found, np.int64)


def from_file(path: Path, caption_image: Ints) -> Noisy:
    """Read a published `.npy` index: one image a caption (C,), or one image an image (I,).

    The second form moves all captions of an image together, as DECL and RCL do.
    """
    given = stored(path)
    captions, images = len(caption_image), int(caption_image.max()) + 1
    if len(given) not in (captions, images):
        raise DataError(
            f"{path} holds numbers of shape {given.shape}; this training split needs "
            f"({captions},) captions or ({images},) images"
        )
    if given.min() < 0 or given.max() >= images:
        raise DataError(f"{path} names images outside 0..{images - 1}")
    return described(given if len(given) == captions else given[caption_image], caption_image)
