"""Each loss beside InfoNCE: a forward and backward pass at B = 128, E = 1024, the two products included.

The limit is InfoNCE itself: a product of the embeddings, two for the gradients, a few passes over (B, B).
"""

import statistics
import time

import torch

from itmfeat.losses import LOSSES, build, similarities

BATCH, DIM, ROUNDS = 128, 1024, 15


def main() -> None:
    """Medians of alternating rounds, so that a busy machine slows all alike."""
    torch.manual_seed(0)
    image, text = (torch.randn(1, BATCH, DIM, requires_grad=True) for _ in range(2))
    ids = torch.arange(BATCH)
    objectives = {name: build(name, runs=1) for name in LOSSES}
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for turn in range(ROUNDS + 2):
        for name, loss in objectives.items():
            start = time.perf_counter()
            loss(similarities(image, text, ids)).sum().backward()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:16} {seconds * 1e3:6.2f} ms  {seconds / medians['infonce']:5.2f} x infonce")


if __name__ == "__main__":
    main()
