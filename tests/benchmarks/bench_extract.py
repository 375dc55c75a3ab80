"""Extraction end to end beside its forward pass alone, on the same items in one process.

End to end: read and decode files (or cut captions into tokens), forward, narrow, checksum, write, seal.
Alone: the forward pass on pixels or token ids that are already in memory, in batches of the same items.
Both alternate; medians and their ratio are printed. The limit is the forward pass, so the ratio is what the
pipeline around it costs. Where the processor's time an item grows with it, the pipeline computes beside the
forward pass; where it does not, the pipeline makes it wait.

    python tests/benchmarks/bench_extract.py --root ../shared/flickr8k --images 640 --rounds 5
    python tests/benchmarks/bench_extract.py --side both       # the images and all of their captions
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
Times = tuple[float, float]


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


def forward(backbone: Any, batches: list[Batch]) -> None:
    """The forward pass alone."""
    for batch in batches:
        last = backbone.encode(*batch)
    last.vectors.flatten()[0].item()  # a GPU may still be at work


class Images:
    """The images of a corpus."""

    def __init__(self, corpus: Corpus, name: str, workers: int) -> None:
        self.corpus, self.count = corpus, len(corpus.image_files)
        self.backbone, self.settings = backbones.load_image(name), Settings(workers=workers)
        self.batches = pixels(self.backbone, corpus)

    def extract(self, digest: str, path: Path) -> None:
        """All of them into a feature file; `digest` is that of the index."""
        extract_images(
            self.corpus, digest, path, self.backbone, TokenPolicy(), self.settings, lambda *_: None
        )


class Texts:
    """The captions of a corpus."""

    def __init__(self, corpus: Corpus, name: str) -> None:
        self.corpus, self.count = corpus, len(corpus.captions)
        self.backbone = backbones.load_text(name)
        self.batches = tokens(self.backbone, corpus)

    def extract(self, digest: str, path: Path) -> None:
        """As of images."""
        extract_texts(self.corpus, digest, path, self.backbone, Settings(), lambda *_: None)


def timed(work: Callable[[], object]) -> Times:
    """Seconds that passed, and seconds of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def end_to_end(side: Images | Texts) -> Times:
    """An extraction into a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        digest = write_corpus(side.corpus, Path(folder))
        return timed(lambda: side.extract(digest, Path(folder) / "features" / "bench.h5"))


def show(name: str, count: int, alone: list[Times], whole: list[Times]) -> None:
    """Speeds, processor time and the ratio of what was measured in turns."""
    for label, column in ((f"{name}, forward alone", alone), (f"{name}, end to end", whole)):
        wall, busy = (statistics.median(times) for times in zip(*column, strict=True))
        print(f"{label:24} {count / wall:7.1f}/s, {1e3 * busy / count:6.2f} ms of the processor each")
    ratio = statistics.median(first / second for (first, _), (second, _) in zip(alone, whole, strict=True))
    print(f"{name}: end to end / forward alone {ratio:.2f}, median over {len(alone)} pairs")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--root", type=Path, default=Path("../shared/flickr8k"))
    parser.add_argument("--side", choices=["image", "text", "both"], default="image")
    parser.add_argument("--image-backbone", default="efficientnet-lite0")
    parser.add_argument("--text-backbone", default="minilm-l6")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=default_workers())
    options = parser.parse_args()

    corpus = read(options.dataset, options.root, limit=options.images)
    sides: dict[str, Images | Texts] = {}
    if options.side != "text":
        sides["images"] = Images(corpus, options.image_backbone, options.workers)
    if options.side != "image":
        sides["captions"] = Texts(corpus, options.text_backbone)
    alone: dict[str, list[Times]] = {name: [] for name in sides}
    whole: dict[str, list[Times]] = {name: [] for name in sides}
    for side in sides.values():
        forward(side.backbone, side.batches[:1])
    for _ in range(options.rounds):
        for name, side in sides.items():
            alone[name].append(timed(partial(forward, side.backbone, side.batches)))
            whole[name].append(end_to_end(side))
    for name, side in sides.items():
        show(name, side.count, alone[name], whole[name])
    if len(sides) == 2:
        show("images with captions", sides["images"].count, *(_sums(each) for each in (alone, whole)))


def _sums(measured: dict[str, list[Times]]) -> list[Times]:
    """Both sides of each round together."""
    rounds = zip(*measured.values(), strict=True)
    return [(sum(wall for wall, _ in each), sum(busy for _, busy in each)) for each in rounds]


if __name__ == "__main__":
    main()
