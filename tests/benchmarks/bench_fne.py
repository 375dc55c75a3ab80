"""What FNE with a memory costs beside the two similarity products that it cannot do without.

    python tests/benchmarks/bench_fne.py [--batch 128] [--memory 8192] [--dim 512 1024] [--repeat 15]

The products (forward alone) and the loss (memory, loss and backward to the embeddings) take turns, so that
other load on the machine meets both alike. The heads see vectors of eight numbers and cost next to nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from itmfeat.heads import Head
from itmfeat.loader import Batch, Side
from itmfeat.losses import build, similarities
from itmfeat.memory import Memory

INPUTS = 8


def batches(size: int) -> Iterator[Batch]:
    """Batches of random vectors, each pair an image of its own."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.ones(1, size, dtype=torch.int64)
    step = 0
    while True:
        ids = torch.arange(size) + step * size
        image = torch.randn(1, size, 1, INPUTS, generator=random)
        text = image + 0.5 * torch.randn(1, size, 1, INPUTS, generator=random)
        yield Batch(ids, ids.unsqueeze(0), Side(image, lengths, step), Side(text, lengths, step))
        step += 1


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(size: int, held: int, dim: int, repeat: int) -> tuple[float, float]:
    """Median seconds of the two products and of the loss."""
    heads = tuple(Head(INPUTS, [torch.Generator().manual_seed(0)], dim=dim) for _ in range(2))
    memory = Memory((heads[0], heads[1]), torch.tensor([0]), held, 0.995)
    loss = build("fne", runs=1)
    stream = batches(size)
    variant = torch.tensor([0])

    def step(batch: Batch) -> Callable[[], None]:
        image, text = (
            head(side).detach().requires_grad_()
            for head, side in zip(heads, (batch.image, batch.text), strict=True)
        )
        s = similarities(image, text, batch.image_ids)

        def work() -> None:
            found = memory(s, image, text, batch, variant, None, (heads[0], heads[1]))
            torch.autograd.backward(loss(found).sum())

        return work

    for _ in range(held // size + 2):  # fills the queue and sees enough matches
        step(next(stream))()
    assert memory.filled == held
    assert memory.count.min() > 200
    query = torch.randn(size, dim)
    candidates = [torch.randn(size + held, dim) for _ in range(2)]

    def products() -> list[Tensor]:
        return [query @ each.T for each in candidates]

    taken = [(seconds(products), seconds(step(next(stream)))) for _ in range(repeat)]
    first, second = zip(*taken, strict=True)
    return statistics.median(first), statistics.median(second)


def main() -> None:
    """Print the ratio for each dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--memory", type=int, default=8192)
    parser.add_argument("--dim", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    for dim in args.dim:
        product, loss = compare(args.batch, args.memory, dim, args.repeat)
        print(
            f"E = {dim}: products {product * 1e3:.1f} ms, loss {loss * 1e3:.1f} ms, "
            f"ratio {loss / product:.2f} (at most 2.5)"
        )


if __name__ == "__main__":
    main()
