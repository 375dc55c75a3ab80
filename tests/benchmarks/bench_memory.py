"""Peak memory of an extraction against the size of the dataset.

A few pictures under many names with one caption each, and backbones whose forward pass costs nothing
(captions are cut into tokens by a real one), so that a hundred thousand items take a minute. Each size runs
in a process of its own; what counts is how far the peaks are apart.

    python tests/benchmarks/bench_memory.py --items 1000 100000
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from itmfeat_extract import backbones
from itmfeat_extract.backbones import Encoded
from itmfeat_extract.corpus import Corpus
from itmfeat_extract.pipeline import Settings, extract_images, extract_texts, write_corpus
from itmfeat_extract.tokens import TokenPolicy

PICTURES, EDGE, DIM = 20, 64, 64
WORDS = "a dog runs over the green grass beside two small children with red balls in front of an old house"


class Patches:
    """Means of blocks of pixels, 8 x 8 of them, as if they were features."""

    name, dim, pooled_dim = "patches", DIM, 0
    regions, grid = 64, (8, 8)

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.convert("RGB").resize((EDGE, EDGE)))

    def encode(self, pixels: torch.Tensor) -> Encoded:
        plane = pixels.permute(0, 3, 1, 2).float()
        cells = torch.nn.functional.adaptive_avg_pool2d(plane, self.grid).flatten(2).transpose(1, 2)
        return Encoded(cells[:, :, :1].expand(-1, -1, DIM), None)

    def fingerprint(self) -> dict[str, Any]:
        return {"weights": "none"}


class Words:
    """The token ids themselves, as if they were features."""

    name, dim, pooled_dim, pad_to = "words", DIM, 0, None

    def __init__(self) -> None:
        self._real = backbones.load_text("minilm-l6", "cpu")
        self.pad_id, self.max_length = self._real.pad_id, self._real.max_length

    def tokenize(self, captions: list[str]) -> backbones.Tokenized:
        return self._real.tokenize(captions)

    def encode(self, ids: torch.Tensor, lengths: torch.Tensor) -> Encoded:
        return Encoded(ids.float().unsqueeze(2).expand(-1, -1, DIM), None)

    def fingerprint(self) -> dict[str, Any]:
        return {"weights": "none"}


def corpus_of(root: Path, items: int) -> Corpus:
    """So many images and captions, of a few files."""
    words, rng = WORDS.split(), np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (EDGE, EDGE, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return Corpus(
        name="many",
        root=root,
        image_ids=[f"image {row}" for row in range(items)],
        image_files=[f"./{row % PICTURES}.png" for row in range(items)],
        image_splits=["train"] * items,
        captions=[" ".join(rng.choice(words, 12)) for _ in range(items)],
        caption_ids=list(range(items)),
        caption_image=np.arange(items),
    )


def peak() -> float:
    """MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def once(items: int) -> None:
    """Extract so many items and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        text, cache = Words(), Path(folder) / "cache"
        corpus = corpus_of(Path(folder), items)
        before = peak()
        digest = write_corpus(corpus, cache)
        given = (Settings(), lambda what, done, total: None)
        extract_images(corpus, digest, cache / "image" / "a.h5", Patches(), TokenPolicy(), *given)
        images = peak()
        extract_texts(corpus, digest, cache / "text" / "a.h5", text, *given)
        print(f"{items} items: {before:.0f} MB with the dataset read, {images:.0f} after images")
        print(f"{items} items: peak {peak():.0f} MB")


def main() -> None:
    """A process for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 100_000])
    options = parser.parse_args()
    if len(options.items) == 1:
        once(options.items[0])
        return
    for items in options.items:
        subprocess.run([sys.executable, __file__, "--items", str(items)], check=True)


if __name__ == "__main__":
    main()
