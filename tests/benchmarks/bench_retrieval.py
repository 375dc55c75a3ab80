"""What an evaluation costs beside the one matrix product that it cannot do without, and beside loops.

    python tests/benchmarks/bench_retrieval.py [--images 5000] [--captions 25000] [--dim 1024]
        [--repeat 3] [--loops 1] [--faiss]

Both directions, all metrics, and for 5,000 images the five folds. The product and the evaluation take
turns, so that other load on the machine meets both alike; CPU seconds stand beside those of the wall. The
loops sort all scores of one query after the other, as published evaluation code does, `--loops` times.
With `--faiss` the two FAISS searches that would give the recalls alone are timed as well. Memory is the
peak of the process above what it held with the embeddings (Linux).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
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


Seconds = tuple[float, float]
"""Of the wall, and of the CPU."""


def seconds(work: Callable[[], object]) -> Seconds:
    """What one call takes."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def resident(field: str) -> float:
    """A line of the process's status in MB: VmRSS now, VmHWM at most since the last `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1e3


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def loops(image: Tensor, text: Tensor, caption_image: Tensor) -> list[float]:
    """The six recalls as published code finds them: one sort for each query, then a look for its own."""
    scores, owner = image.numpy() @ text.numpy().T, caption_image.numpy()
    i2t, t2i = np.zeros(len(image)), np.zeros(len(text))
    for query, row in enumerate(scores):
        order = np.argsort(row)[::-1]
        i2t[query] = min(np.where(order == own)[0][0] for own in np.where(owner == query)[0])
    for query, column in enumerate(scores.T):
        t2i[query] = np.where(np.argsort(column)[::-1] == owner[query])[0][0]
    return [100 * float((ranks < k).mean()) for ranks in (i2t, t2i) for k in (1, 5, 10)]


def looped(image: Tensor, text: Tensor, caption_image: Tensor) -> list[list[float]]:
    """The recalls of the whole, and of five folds where there are 5,000 images."""
    found = [loops(image, text, caption_image)]
    for start in range(0, 5000 if len(image) == 5000 else 0, 1000):
        mine = (caption_image >= start) & (caption_image < start + 1000)
        found.append(loops(image[start : start + 1000], text[mine], caption_image[mine] - start))
    return found


def check(ours: retrieval.Results, theirs: list[list[float]]) -> None:
    """The loops must find the same."""
    assert abs(ours["rsum"] - sum(theirs[0])) < 0.05, (ours["rsum"], theirs[0])
    if "5x1k" in ours:
        mean = sum(map(sum, theirs[1:])) / 5
        assert abs(ours["5x1k"]["rsum"] - mean) < 0.05, (ours["5x1k"]["rsum"], mean)


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
    parser.add_argument("--loops", type=int, default=1)
    parser.add_argument("--faiss", action="store_true")
    options = parser.parse_args()
    image, text, caption_image = embeddings(options.images, options.captions, options.dim)
    before = resident("VmRSS")
    forget_peak()
    ours = retrieval.evaluate(image, text, caption_image)
    print(f"memory above the embeddings: {resident('VmHWM') - before:.0f} MB at the peak", flush=True)
    scores = torch.empty(options.images, options.captions)

    work: dict[str, Callable[[], object]] = {
        "matrix product": lambda: torch.mm(image, text.T, out=scores),
        "evaluation": lambda: retrieval.evaluate(image, text, caption_image),
    }
    if options.faiss:
        for k in (10, 1000):
            work[f"search both ways, k={k}"] = partial(both_ways, image, text, k)
    took: dict[str, list[Seconds]] = {name: [] for name in work}
    for _ in range(options.repeat):
        for name, call in work.items():
            took[name].append(seconds(call))
    if options.loops:
        took["loops of argsort"] = [
            seconds(lambda: check(ours, looped(image, text, caption_image))) for _ in range(options.loops)
        ]
    print(f"{options.images} images x {options.captions} captions x {options.dim}")
    medians = {
        name: [statistics.median(kind) for kind in zip(*times, strict=True)] for name, times in took.items()
    }
    product = medians["matrix product"]
    for name, (wall, cpu) in medians.items():
        print(
            f"{name:24} {wall:8.2f} s, {wall / product[0]:5.2f} matrix products; "
            f"CPU {cpu:8.2f} s, {cpu / product[1]:5.2f}"
        )


if __name__ == "__main__":
    main()
