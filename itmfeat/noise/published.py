"""The caption-level index files in circulation, regenerated from their seeds to the very byte.

They lie in `noise_index/` of the repositories of BiCro and PC2; NCR, MSCN, CREAM and CRCL use the same form.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itmfeat.errors import DataError, UsageError
from itmfeat.noise.correspondence import array_digest
from itmfeat.noise.protocols import ncr
from itmfeat.pairs import Ints

PER_IMAGE = 5  # in all published files: the captions of an image that the field uses
CAPTIONS = {"flickr30k": 145_000, "coco": 566_435}  # of the training splits that the files were made for


@dataclass(frozen=True)
class Published:
    """An index file in circulation."""

    name: str
    dataset: str
    ratio: float
    seed: int
    moved: int  # captions whose given image is not the true one
    blob: str  # SHA-1 of the file as a git blob
    digest: str  # start of the SHA-256 of its numbers as little-endian int64


PUBLISHED = (
    Published(
        "f30k_precomp_0.2.npy", "flickr30k", 0.2, 96, 28_999,
        "d08bb3f183be66c44e76b1df512c8b991e0a0e7e", "4d367b5592645950",
    ),
    Published(
        "f30k_precomp_0.4.npy", "flickr30k", 0.4, 96, 58_000,
        "72c64ccdc21467544921c78022e69831a4539b0f", "8152f92aa51c5afc",
    ),
    Published(
        "f30k_precomp_0.5.npy", "flickr30k", 0.5, 34, 72_497,
        "be2bff698cdf1d453329b24a62e165b256d62641", "9db257937b57de99",
    ),
    Published(
        "f30k_precomp_0.6.npy", "flickr30k", 0.6, 96, 86_996,
        "5806f31c867f6def527424f38755c7e182c834d6", "bcf16a227419634d",
    ),
    Published(
        "coco_precomp_0.2.npy", "coco", 0.2, 16, 113_286,
        "f137cb43e517336ec1e7dcb84c0ec6096a1c6acb", "a0ca6052556963d6",
    ),
    Published(
        "coco_precomp_0.4.npy", "coco", 0.4, 96, 226_572,
        "214e9f8e59b29c2db7615e9311a5ad50fbbbdbde", "9f674ad089f7d375",
    ),
    Published(
        "coco_precomp_0.5.npy", "coco", 0.5, 43, 283_214,
        "2e0ed51394174f579e46f5f40aba3f884bacb18d", "ba9658be353a59e3",
    ),
    Published(
        "coco_precomp_0.6.npy", "coco", 0.6, 96, 339_856,
        "32393aca88becf032d5d90b44d5a73959b13a022", "7be1266823f938e4",
    ),
)  # fmt: skip


def seed_of(seed: int | str, dataset: str, protocol: str, ratio: float) -> int:
    """The number that a noise seed stands for: itself, or the published one of a dataset and ratio.

    At ratio 0 nothing is drawn, and any seed will do. The published index itself comes out only where the
    training split is the whole one; `noise inspect` names it.
    """
    if seed != "published":
        try:
            return int(seed)
        except ValueError:
            raise UsageError(f"the noise seed is a whole number or 'published', not {seed!r}") from None
    seeds = {found.ratio: found.seed for found in PUBLISHED if found.dataset == dataset}
    if protocol == "ncr" and seeds and ratio in {0.0, *seeds}:
        return seeds.get(ratio, 96)
    listed = "; ".join(
        f"{name} at {', '.join(f'{found.ratio:g}' for found in PUBLISHED if found.dataset == name)}"
        for name in CAPTIONS
    )
    raise UsageError(
        f"no seed is published for {dataset} at noise {ratio:g} by {protocol}; there are, by ncr, {listed}"
    )


def blob_digest(content: bytes) -> str:
    """SHA-1 of a file's content as git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def write(path: Path, given: Ints) -> None:
    """Write a correspondence (C,) as an `.npy` file of int64, as all loaders of the field read it."""
    path.write_bytes(content_of(given))


def content_of(given: Ints) -> bytes:
    """The bytes of the `.npy` file that numpy writes for a correspondence (C,)."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(given, "<i8"))
    return buffer.getvalue()


def publish(folder: Path) -> list[dict[str, Any]]:
    """Regenerate the eight published files into a folder; one row each, `ok` if every byte is right.

    A file that is not right is not written, and a different file of the same name is not touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for known in PUBLISHED:
        true = np.arange(CAPTIONS[known.dataset]) // PER_IMAGE
        given = ncr(true, known.ratio, known.seed)
        content = content_of(given)
        row = vars(known) | {
            "moved": int((given != true).sum()),
            "blob": blob_digest(content),
            "digest": array_digest(given)[:16],
        }
        path = folder / known.name
        if row == vars(known):
            _keep(path, content)
        rows.append({**row, "path": str(path), "ok": row == vars(known)})
    return rows


def _keep(path: Path, content: bytes) -> None:
    """Write a file unless it is there; another one of that name is an error."""
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    elif path.read_bytes() != content:
        raise DataError(f"{path} exists and is another file; choose another folder with -o")
