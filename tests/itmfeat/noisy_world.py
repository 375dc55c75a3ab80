"""Pairs whose truth is known: their features, what nets would find, and methods begun on them."""

from collections.abc import Callable

import torch
from test_losses import IDS, batch
from torch import Tensor

from itmfeat.losses import Similarities
from itmfeat.robust import Method, Scores, Setting

CPU = torch.device("cpu")
Features = tuple[Tensor, Tensor]


def world(
    images: int = 300, wrong: float = 0.4, dims: tuple[int, int] = (48, 32)
) -> tuple[Features, Tensor, Tensor]:
    """Features of one latent seen by two unlike random maps; given and true images of the captions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    true = torch.arange(images).repeat_interleave(3)
    topic = normal(12, 10)[torch.randint(12, (images,), generator=generator)] + 0.6 * normal(images, 10)
    image = topic @ normal(10, dims[0]) + 0.5 * normal(images, dims[0]) + 3  # a mean that all share
    text = (topic[true] + 0.3 * normal(len(true), 10)) @ normal(10, dims[1]) - 2
    given = true.clone()
    moved = torch.randperm(len(true), generator=generator)[: round(wrong * len(true))]
    given[moved] = true[moved.roll(1)]
    return (image, text), given, true


def setting(features: Features, given: Tensor, epochs: int = 10) -> Setting:
    return Setting(given, epochs, CPU, lambda: features)


def scores(clean: Tensor, nets: int = 1, overlap: float = 0.3) -> Scores:
    """What nets with some skill would find: noisy pairs have larger losses, mostly; nets differ."""
    noise = torch.randn(nets, len(clean), generator=torch.Generator().manual_seed(1))
    loss = torch.where(clean, 0.3, 1.3) + overlap * noise
    return Scores(loss / 3, loss, loss < 0.8)


def auc(label: Tensor, clean: Tensor) -> float:
    """Probability that a clean pair has the larger label than a noisy one."""
    above = label[clean].unsqueeze(1) - label[~clean]
    return float((above > 0).float().mean() + (above == 0).float().mean() / 2)


def never() -> Scores:
    raise AssertionError("this epoch needs no scores")


def similar(nets: int | None = 1, ids: Tensor = IDS) -> Similarities:
    s = batch(runs=nets, ids=ids)
    return Similarities(s.i2t.detach(), s.t2i.detach(), s.positive)


def begun(method: Method, found: Callable[[], Scores], until: int = 3) -> Method:
    """Through the warm-up and into the first epoch after it."""
    for epoch in range(until + 1):
        method.begin(epoch, never if epoch < until else found)
    return method
