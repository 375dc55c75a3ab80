"""The demo dataset: drawn on the spot, so that everything can be tried without a download.

Pictures of coloured shapes with five true captions each. Every tenth picture shows the scene of
the one before it, drawn anew: its captions fit both pictures, though the annotations, as in real
data, know of one (false negatives).
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from itmfeat.errors import DataError, ItmfeatError, UsageError
from itmfeat_extract.corpus import karpathy
from itmfeat_extract.corpus.annotations import field, load
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.demo.painting import paint
from itmfeat_extract.corpus.demo.scenes import Scene, draw_scene
from itmfeat_extract.corpus.demo.words import describe
from itmfeat_extract.corpus.rows import assemble

_VERSION = 1  # raise it when the same settings would give other pictures or captions
_FILE = "dataset_demo.json"
_TWIN_EVERY = 10


def read_demo(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """The demo dataset in `root`, drawn first if it is absent or not whole."""
    size, seed = _settings(root) or (600, 0)
    rows = karpathy.rows(generate(root, size, seed))
    return assemble("demo", root, rows, source=_FILE, folders=["images"], fractions=fractions)


def generate(root: Path, images: int = 600, seed: int = 0) -> Path:
    """Draw the demo dataset into `root` and return its split file, in Karpathy's format.

    The same arguments give the same bytes (under one version of Pillow). The split file is
    written last and carries the arguments: where it is whole, nothing is done.
    """
    if images < 6 or not 0 <= seed < 2**32:
        raise UsageError("the demo needs at least 6 images, and a seed from 0 to 4294967295")
    target = root / _FILE
    if _settings(root) == (images, seed) and _whole(root, images):
        return target
    try:
        _write(root, images, seed)
    except OSError as error:
        raise ItmfeatError(f"cannot draw the demo into {root}: {error.strerror}") from error
    return target


def _settings(root: Path) -> tuple[int, int] | None:
    """Images and seed of the demo that stands in `root`; None if none of this version does."""
    try:
        made = load(root / _FILE).get("generator")
        size, seed = field(made, "images", int, _FILE), field(made, "seed", int, _FILE)
        same = field(made, "version", int, _FILE) == _VERSION
    except (OSError, DataError):
        return None
    return (size, seed) if same else None


def _whole(root: Path, images: int) -> bool:
    folder = root / "images"
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return there.issuperset(map(_name, range(images)))


def _write(root: Path, images: int, seed: int) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / _FILE).unlink(missing_ok=True)
    for number in range(images):
        picture = paint(_scene(number, seed), np.random.RandomState([seed, number, 1]))
        picture.save(root / "images" / _name(number))
    content = {
        "dataset": "demo",
        "generator": {"version": _VERSION, "images": images, "seed": seed},
        "images": [_entry(number, images, seed) for number in range(images)],
    }
    draft = root / f".{_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(root / _FILE)


def _name(number: int) -> str:
    return f"demo_{number:05d}.png"


def _scene(number: int, seed: int) -> Scene:
    twin = number % _TWIN_EVERY == _TWIN_EVERY - 1
    return draw_scene(np.random.RandomState([seed, number - twin, 0]))


def _entry(number: int, images: int, seed: int) -> dict[str, Any]:
    """What the split file says of one image; `scene` is ours, the rest is Karpathy's."""
    scene = _scene(number, seed)
    captions = describe(scene, np.random.RandomState([seed, number, 2]))
    first = number * len(captions)
    held_out = round(images / 6)  # a sixth for val, a sixth for test
    position = images - number
    return {
        "filename": _name(number),
        "imgid": number,
        "split": "test" if position <= held_out else "val" if position <= 2 * held_out else "train",
        "sentids": list(range(first, first + len(captions))),
        "sentences": [
            {"tokens": _tokens(raw), "raw": raw, "imgid": number, "sentid": first + place}
            for place, raw in enumerate(captions)
        ],
        "scene": asdict(scene),
    }


def _tokens(caption: str) -> list[str]:
    return "".join(sign for sign in caption.lower() if sign.isalpha() or sign == " ").split()
