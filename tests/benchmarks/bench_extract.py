"""Image extraction end to end beside its forward pass alone, on the same pictures in one process.

End to end: read and decode files, forward, narrow, checksum, write, verify, seal. Alone: the forward pass
on pixels that are already in memory. Both alternate; medians and their ratio are printed. The limit of an
extraction is the forward pass, so the ratio is what the pipeline around it costs.

    python tests/benchmarks/bench_extract.py --root ../shared/flickr8k --images 640 --rounds 5
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from itmfeat_extract import backbones
from itmfeat_extract.corpus import Corpus, read
from itmfeat_extract.engines import default_workers
from itmfeat_extract.pipeline import IMAGE_RANGE, Settings, extract_images, write_corpus
from itmfeat_extract.tokens import TokenPolicy


def alone(backbone: backbones.ImageBackbone, pixels: torch.Tensor) -> float:
    """Seconds of the forward pass of pixels (images, H, W, 3), range by range."""
    start = time.perf_counter()
    for part in torch.split(pixels, IMAGE_RANGE):
        last = backbone.encode(part)
    last.vectors.flatten()[0].item()  # a GPU may still be at work
    return time.perf_counter() - start


def end_to_end(backbone: backbones.ImageBackbone, corpus: Corpus, workers: int) -> float:
    """Seconds of an extraction into a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        digest = write_corpus(corpus, Path(folder))
        start = time.perf_counter()
        path = Path(folder) / "image" / "bench.h5"
        settings = Settings(workers=workers)
        extract_images(corpus, digest, path, backbone, TokenPolicy(), settings, lambda *_: None)
        return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--root", type=Path, default=Path("../shared/flickr8k"))
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=default_workers())
    options = parser.parse_args()

    corpus = read(options.dataset, options.root, limit=options.images)
    backbone = backbones.load_image(options.backbone)
    pictures = [backbone.preprocess(Image.open(corpus.root / name)) for name in corpus.image_files]
    pixels = torch.stack([torch.from_numpy(picture) for picture in pictures])
    alone(backbone, pixels[:IMAGE_RANGE])
    times = [
        (alone(backbone, pixels), end_to_end(backbone, corpus, options.workers))
        for _ in range(options.rounds)
    ]
    for name, column in zip(("forward alone", "end to end"), zip(*times, strict=True), strict=True):
        print(f"{name:14} {len(corpus.image_files) / statistics.median(column):7.1f} images/s (median)")
    ratio = statistics.median(first / second for first, second in times)
    print(f"end to end / forward alone {ratio:.2f}, median over {options.rounds} pairs")


if __name__ == "__main__":
    main()
