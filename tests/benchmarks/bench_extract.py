"""Extraction end to end beside its forward pass alone, on the same items in one process.

End to end: read and decode files (or cut captions into tokens), forward, narrow, checksum, write, seal.
Alone: the forward pass on pixels or token ids that are already in memory, in batches of the same items.
Both alternate; medians and their ratio are printed. The limit is the forward pass, so the ratio is what the
pipeline around it costs.

    python tests/benchmarks/bench_extract.py --root ../shared/flickr8k --images 640 --rounds 5
    python tests/benchmarks/bench_extract.py --side text --backbone minilm-l6 --images 1280
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itmfeat_extract import backbones
from itmfeat_extract.corpus import Corpus, read
from itmfeat_extract.engines import default_workers
from itmfeat_extract.makers import TEXT_BATCH
from itmfeat_extract.pipeline import (
    IMAGE_RANGE,
    TEXT_RANGE,
    Settings,
    extract_images,
    extract_texts,
    write_corpus,
)
from itmfeat_extract.tokens import TokenPolicy

Batch = tuple[Tensor, ...]


def pixels(backbone: backbones.ImageBackbone, corpus: Corpus) -> list[Batch]:
    """All pictures, decoded, range by range (images, H, W, 3)."""
    pictures = [backbone.preprocess(Image.open(corpus.root / name)) for name in corpus.image_files]
    whole = torch.stack([torch.from_numpy(picture) for picture in pictures])
    return [(part,) for part in torch.split(whole, IMAGE_RANGE)]


def tokens(backbone: backbones.TextBackbone, corpus: Corpus) -> list[Batch]:
    """All captions as ids (captions, L) and lengths, in each range by length."""
    found: list[Batch] = []
    for first in range(0, len(corpus.captions), TEXT_RANGE):
        ids = sorted(backbone.tokenize(corpus.captions[first : first + TEXT_RANGE]).ids, key=len)
        for start in range(0, len(ids), TEXT_BATCH):
            part = [torch.tensor(np.asarray(each)) for each in ids[start : start + TEXT_BATCH]]
            padded = torch.nn.utils.rnn.pad_sequence(part, True, backbone.pad_id)
            if backbone.pad_to:
                more = backbone.pad_to - padded.shape[1]
                padded = torch.nn.functional.pad(padded, (0, more), value=backbone.pad_id)
            found.append((padded, torch.tensor([len(each) for each in part])))
    return found


def alone(backbone: Any, batches: list[Batch]) -> float:
    """Seconds of the forward pass."""
    start = time.perf_counter()
    for batch in batches:
        last = backbone.encode(*batch)
    last.vectors.flatten()[0].item()  # a GPU may still be at work
    return time.perf_counter() - start


def end_to_end(work: Callable[[str, Path], object], corpus: Corpus) -> float:
    """Seconds of an extraction into a fresh folder; `work` takes the digest of the index and a path."""
    with tempfile.TemporaryDirectory() as folder:
        digest = write_corpus(corpus, Path(folder))
        start = time.perf_counter()
        work(digest, Path(folder) / "features" / "bench.h5")
        return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--root", type=Path, default=Path("../shared/flickr8k"))
    parser.add_argument("--side", choices=["image", "text"], default="image")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=default_workers())
    options = parser.parse_args()

    corpus = read(options.dataset, options.root, limit=options.images)
    settings = Settings(workers=options.workers)
    if options.side == "image":
        image = backbones.load_image(options.backbone or "efficientnet-lite0")
        batches, items = pixels(image, corpus), len(corpus.image_files)

        def work(digest: str, path: Path) -> None:
            extract_images(corpus, digest, path, image, TokenPolicy(), settings, lambda *_: None)
    else:
        text = backbones.load_text(options.backbone or "minilm-l6")
        batches, items = tokens(text, corpus), len(corpus.captions)

        def work(digest: str, path: Path) -> None:
            extract_texts(corpus, digest, path, text, settings, lambda *_: None)

    backbone = image if options.side == "image" else text
    alone(backbone, batches[:1])
    times = [(alone(backbone, batches), end_to_end(work, corpus)) for _ in range(options.rounds)]
    for name, column in zip(("forward alone", "end to end"), zip(*times, strict=True), strict=True):
        print(f"{name:14} {items / statistics.median(column):7.1f} {options.side}s/s (median)")
    ratio = statistics.median(first / second for first, second in times)
    print(f"end to end / forward alone {ratio:.2f}, median over {options.rounds} pairs")


if __name__ == "__main__":
    main()
