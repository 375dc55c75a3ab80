"""What an evaluation costs beside the one matrix product that it cannot do without.

    python tests/benchmarks/bench_retrieval.py [--images 5000] [--captions 25000] [--dim 1024]
        [--repeat 3] [--faiss]

The product and the evaluation take turns, so that other load on the machine meets both alike. With
`--faiss` the two FAISS searches that would give the recalls alone are timed as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from itmfeat import retrieval


def embeddings(images: int, captions: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, E), captions (C, E) that lie near their image, and whose each caption is (C,)."""
    torch.manual_seed(0)
    image = normalize(torch.randn(images, dim), dim=1)
    caption_image = torch.arange(captions) * images // captions
    text = normalize(image[caption_image] + 0.3 * torch.randn(captions, dim), dim=1)
    return image, text, caption_image


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def both_ways(image: Tensor, text: Tensor, k: int) -> None:
    """The k best captions (N, k) of each image and the k best images (C, k) of each caption."""
    retrieval.search(image, text, k)
    retrieval.search(text, image, k)


def main() -> None:
    """Print the median of each and its ratio to the matrix product."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--faiss", action="store_true")
    options = parser.parse_args()
    image, text, caption_image = embeddings(options.images, options.captions, options.dim)
    scores = torch.empty(options.images, options.captions)

    work: dict[str, Callable[[], object]] = {
        "matrix product": lambda: torch.mm(image, text.T, out=scores),
        "evaluation": lambda: retrieval.evaluate(image, text, caption_image, "full"),
    }
    if options.faiss:
        for k in (10, 1000):
            work[f"search both ways, k={k}"] = partial(both_ways, image, text, k)
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.repeat):
        for name, call in work.items():
            took[name].append(seconds(call))
    print(f"{options.images} images x {options.captions} captions x {options.dim}")
    product = statistics.median(took["matrix product"])
    for name, times in took.items():
        median = statistics.median(times)
        print(f"{name:28} {median:8.3f} s {median / product:6.2f} matrix products")


if __name__ == "__main__":
    main()
