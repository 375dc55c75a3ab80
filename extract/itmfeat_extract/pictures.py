"""From the bytes of a picture to what a backbone sees, whatever a dataset calls a picture.

What can be decoded is decoded as a viewer would show it: upright by its EXIF tag, transparency on white, the
first frame of an animation, the upper eight bits of sixteen. All else is named in one sentence.
"""

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from itmfeat.errors import DataError
from itmfeat_extract.backbones.preprocess import ORIENTATION, to_rgb
from itmfeat_extract.corpus import Corpus
from itmfeat_extract.corpus.annotations import field, load
from itmfeat_extract.corpus.base import Opener
from itmfeat_extract.corpus.inside import open_inside

T = TypeVar("T")

# Plain raster formats. Others Pillow hands to programs beside it (EPS to Ghostscript, which opens files).
_RASTER = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
Image.init()
FORMATS = [name for name in _RASTER if name in Image.OPEN]  # a Pillow may be built without some
LONGEST = 200  # sides: a resize of the shorter one to 224 would make the longer one 45,000 pixels
SAMPLE = 64  # pixels a side that are enough to see whether a JPEG is whole
STEP = 512  # images that are checked between two words of progress
UNREADABLE = "unreadable.json"
HINT = "; replace it, or leave such images out with --on-error skip"

# Pillow warns of pictures that are too large and refuses those twice as large; both are refused here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of odd metadata


def unreadable(
    corpus: Corpus, cache: Path, digest: str, workers: int, progress: Callable[[str, int, int], None]
) -> dict[int, str]:
    """Rows of the images that cannot be decoded, and why; found by decoding all of them once.

    The same is written to `unreadable.json` in the cache folder, so that all backbones leave out
    the same, and a resumed extraction too; `digest` is that of the index they belong to.
    """
    path = cache / UNREADABLE
    if not path.exists() or load(path).get("dataset") != digest:
        found = _tried(corpus, workers, progress)
        draft = path.with_name(f"{path.name}.{os.getpid()}.part")
        draft.write_text(json.dumps({"dataset": digest, "images": found}, indent=1), encoding="utf-8")
        draft.replace(path)
    return {int(row): reason for row, reason in field(load(path), "images", dict, str(path)).items()}


def sizes(corpus: Corpus, workers: int, missing: Collection[int]) -> Iterator[tuple[int, int]]:
    """Heights and widths of all images, upright, by their headers; 1 x 1 for a `missing` one without."""

    def size(row: int) -> tuple[int, int]:
        try:
            return decode(corpus, row, _size)
        except DataError:
            if row not in missing:
                raise
            return 1, 1

    with ThreadPoolExecutor(max(1, workers), "measure") as pool:
        yield from pool.map(size, range(len(corpus.image_files)))


def _size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _tried(corpus: Corpus, workers: int, progress: Callable[[str, int, int], None]) -> dict[int, str]:
    count, found = len(corpus.image_files), {}
    with ThreadPoolExecutor(max(1, workers), "check") as pool:
        for first in range(0, count, STEP):
            rows = range(first, min(first + STEP, count))
            reasons = zip(rows, pool.map(lambda row: _reason(corpus, row), rows), strict=True)
            found.update({row: reason for row, reason in reasons if reason})
            progress("check images", rows.stop, count)
    return found


def _reason(corpus: Corpus, row: int) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        decode(corpus, row, _sampled)
    except DataError as error:
        return str(error).removesuffix(HINT)
    return ""


def _sampled(image: Image.Image) -> None:
    image.draft("RGB", (SAMPLE, SAMPLE))  # JPEG alone: all bytes are read, few pixels are computed
    to_rgb(image)


def decode(corpus: Corpus, row: int, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an image of a corpus; a DataError names one that is no picture."""
    return decode_named(corpus.root, corpus.image_files[row], corpus.opener, use)


def decode_named(root: Path, name: str, opener: Opener | None, use: Callable[[Image.Image], T]) -> T:
    """The same of an image by its name, which `opener` knows, or which is a file below `root`."""
    try:
        opened = opener(name) if opener else open_inside(root, name)
        with opened as file, Image.open(file, formats=FORMATS) as image:
            longer, shorter = max(image.size), min(image.size)
            if longer > LONGEST * shorter:
                raise ValueError(f"{image.width} x {image.height} pixels are too long and narrow")
            return use(image)
    except DataError as error:  # not there, not to be read, or outside
        raise DataError(f"{error}{HINT}") from error
    except Exception as error:  # of a hostile file Pillow's readers raise nearly anything
        shown = name if opener else root / name
        raise DataError(f"{shown} cannot be read as an image ({_said(error)}){HINT}") from error


def _said(error: Exception) -> str:
    """The first line of what a library says, without the address of its buffer."""
    if isinstance(error, UnidentifiedImageError):
        return "none of the formats that are read here"
    return (str(error) or type(error).__name__).splitlines()[0]
