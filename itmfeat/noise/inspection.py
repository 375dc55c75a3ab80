"""What a noisy correspondence or an index file is like: its kind, its rate, its origin."""

from pathlib import Path
from typing import Any

import numpy as np

from itmfeat.errors import DataError
from itmfeat.noise.correspondence import Noisy, from_file, stored
from itmfeat.noise.protocols import drawn, generator
from itmfeat.noise.published import CAPTIONS, PER_IMAGE, PUBLISHED, blob_digest
from itmfeat.pairs import Ints


def kind_of(given: Ints, caption_image: Ints) -> str:
    """ "caption-level" or "image-level" noise, by the content of a correspondence (C,).

    Image-level noise gives all captions of an image the same image. L2RM's files are such although they
    have one number a caption. Where no caption moved, or no image has two, it is called caption-level.
    """
    if np.array_equal(given, caption_image) or np.bincount(caption_image).max() < 2:
        return "caption-level"
    one = np.zeros(int(caption_image.max()) + 1, np.int64)
    one[caption_image] = given  # the given image of any one of an image's captions
    return "image-level" if np.array_equal(one[caption_image], given) else "caption-level"


def facts(noise: Noisy, caption_image: Ints) -> dict[str, Any]:
    """What a noisy correspondence (C,) does to the true one, as plain data."""
    given = noise.caption_image
    captions = np.bincount(caption_image)  # (I,)
    wrong = np.bincount(caption_image, weights=given != caption_image)  # (I,) moved captions of an image
    received = np.bincount(given, minlength=len(captions))
    return {
        "kind": kind_of(given, caption_image),
        "captions": len(given),
        "images": len(captions),
        "moved": int(wrong.sum()),
        "effective": noise.effective,
        "images_clean": float(np.mean(wrong == 0)),  # all captions right
        "images_noisy": float(np.mean(wrong == captions)),  # all captions wrong
        "images_without_caption": int((received == 0).sum()),
        "same_counts": bool(np.array_equal(received, captions)),  # else it cannot be stacked
        "digest": noise.digest,
    }


def fixed_points(noise: Noisy, caption_image: Ints, protocol: str, ratio: float, seed: int) -> dict[str, int]:
    """How many captions a protocol drew, and how many of them kept their image all the same."""
    if protocol == "decl":
        images = int(caption_image.max()) + 1
        chosen = np.isin(caption_image, drawn(images, ratio, generator(seed)))
    else:
        chosen = np.zeros(len(caption_image), bool)
        chosen[drawn(len(chosen), ratio, generator(seed))] = True
    kept = noise.caption_image == caption_image
    return {"chosen": int(chosen.sum()), "fixed_points": int((chosen & kept).sum())}


def inspect(path: Path, caption_image: Ints | None = None, images: int | None = None) -> dict[str, Any]:
    """What an index file is: its kind, its noise, its digests, and its published name if it has one.

    The true correspondence is `caption_image` (C,), or follows from the number of images, or from a length
    that the published files have.
    """
    true = assumed(path, images) if caption_image is None else caption_image
    noise = from_file(path, true)
    one_a_caption = len(stored(path)) == len(true)
    found = {
        "file": str(path),
        "form": "one image a caption" if one_a_caption else "one image an image",
        **facts(noise, true),
        "blob": blob_digest(path.read_bytes()),
        "published": None,
    }
    for known in PUBLISHED:
        if len(true) == CAPTIONS[known.dataset] and noise.digest.startswith(known.digest):
            drawn = fixed_points(noise, true, "ncr", known.ratio, known.seed)
            found |= {"published": known.name, "ratio": known.ratio, "seed": known.seed, **drawn}
    return found


def assumed(path: Path, images: int | None = None) -> Ints:
    """The true correspondence (C,) of an index file, from its length alone.

    With a number of images: that many, each with equally many captions (five where the file has one number
    an image). Else only the lengths of the published files are known. A DataError where neither helps.
    """
    length = len(stored(path))
    if images is not None:
        if length == 0 or length % images:
            raise DataError(f"{path} holds {length} numbers, which do not divide among {images} images")
        return np.repeat(np.arange(images), PER_IMAGE if length == images else length // images)
    for captions in CAPTIONS.values():
        if length in (captions, captions // PER_IMAGE):
            return np.arange(captions) // PER_IMAGE
    raise DataError(f"{path} holds {length} numbers: pass --cache or --images, so that they mean something")
