"""Noisy correspondence: wrong captions for the training split, exactly as the published protocols do it.

A protocol turns the true array caption -> image into a noisy one; the true array stays for diagnosis.
The generators are the legacy numpy ones, because the published index files came from those.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itmfeat.errors import DataError, UsageError, unknown
from itmfeat.pairs import Ints


@dataclass(frozen=True)
class Noisy:
    """A noisy correspondence and what a table has to say about it."""

    caption_image: Ints  # (C,) the given image of each caption
    digest: str  # SHA-256 of the array as little-endian int64
    effective: float  # share of captions whose given image is not the true one


def ncr(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Caption-level noise of NCR (Huang et al., NeurIPS 2021), (C,) -> (C,).

    int(ratio * C) captions are drawn, and their image ids are shuffled among them. Every image keeps its
    number of captions; about 1/C of the drawn ones fall back to their own image.
    """
    random = np.random.RandomState(seed)
    noisy = caption_image.copy()
    order = np.arange(len(noisy))
    random.shuffle(order)
    chosen = order[: int(ratio * len(noisy))]
    moved = noisy[chosen]
    random.shuffle(moved)
    noisy[chosen] = moved
    return noisy


def decl(caption_image: Ints, ratio: float, seed: int) -> Ints:
    """Image-level noise of DECL (Qin et al., ACM MM 2022) and RCL, (C,) -> (C,).

    int(ratio * I) images are drawn and permuted among themselves; all captions of an image move together,
    so an image is all right or all wrong. Harder than `ncr` at the same ratio.
    """
    random = np.random.RandomState(seed)
    images = int(caption_image.max()) + 1
    order = np.arange(images)
    random.shuffle(order)
    chosen = order[: int(ratio * images)]
    moved = chosen.copy()
    random.shuffle(moved)
    given = np.arange(images)
    given[chosen] = moved
    return given[caption_image]


PROTOCOLS = {"ncr": ncr, "decl": decl}


def corrupt(caption_image: Ints, protocol: str, ratio: float, seed: int) -> Noisy:
    """Apply a protocol at a noise ratio in [0, 1) to a true correspondence (C,)."""
    if protocol not in PROTOCOLS:
        raise unknown("noise protocol", protocol, list(PROTOCOLS))
    if not 0 <= ratio < 1:
        raise UsageError(f"the noise ratio must lie in [0, 1), not {ratio:g}")
    return described(PROTOCOLS[protocol](caption_image, ratio, seed), caption_image)


def described(given: Ints, caption_image: Ints) -> Noisy:
    """A noisy correspondence with its digest and effective ratio."""
    digest = hashlib.sha256(np.ascontiguousarray(given, "<i8").tobytes()).hexdigest()
    return Noisy(given, digest, float(np.mean(given != caption_image)))


def file_digest(path: Path) -> str:
    """SHA-256 of an index file, so that a run is tied to its content and not to its name."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} is no readable .npy file of integers") from error


def from_file(path: Path, caption_image: Ints) -> Noisy:
    """Read a published `.npy` index: one image a caption (C,), or one image an image (I,).

    The second form moves all captions of an image together, as DECL and RCL do.
    """
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable .npy file of integers") from error
    captions, images = len(caption_image), int(caption_image.max()) + 1
    integers = stored.ndim == 1 and np.issubdtype(stored.dtype, np.integer)
    if not integers or len(stored) not in (captions, images):
        raise DataError(
            f"{path} holds {stored.dtype} of shape {stored.shape}; this training split needs "
            f"({captions},) captions or ({images},) images"
        )
    if stored.min() < 0 or stored.max() >= images:
        raise DataError(f"{path} names images outside 0..{images - 1}")
    given = stored.astype(np.int64)
    return described(given if len(given) == captions else given[caption_image], caption_image)
