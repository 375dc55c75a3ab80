"""Mixtures of losses: they separate what they should, in order, and survive a net that diverged."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from itmfeat.robust.mixture import posterior

KINDS: list[Literal["gmm", "bmm"]] = ["gmm", "bmm"]


def clusters(clean: int, noisy: int, apart: float, spread: tuple[float, float] = (0.1, 0.25)) -> Tensor:
    """Losses of clean pairs, then of noisy ones."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(clean + noisy, generator=generator)
    return torch.cat([values[:clean] * spread[0] + 0.3, values[clean:] * spread[1] + 0.3 + apart])


@pytest.mark.parametrize("kind", KINDS)
def test_two_clusters_are_separated(kind: Literal["gmm", "bmm"]) -> None:
    found = posterior(clusters(1200, 800, apart=1.2), kind) > 0.5
    assert found[:1200].float().mean() > 0.99
    assert found[1200:].float().mean() < 0.01


@pytest.mark.parametrize(
    ("small", "large", "share"),
    [((2, 20), (8, 4), 0.6), ((2, 6), (6, 2), 0.6), ((1.5, 10), (3, 3), 0.8), ((20, 80), (80, 20), 0.5)],
)
def test_betas_are_recovered(small: tuple[float, float], large: tuple[float, float], share: float) -> None:
    """Close to the posterior of the true mixture, Bayes' rule with the densities that were drawn from."""
    from scipy.stats import beta  # type: ignore[import-untyped]

    random = np.random.RandomState(0)
    clean = round(8000 * share)
    x = np.concatenate([random.beta(*small, clean), random.beta(*large, 8000 - clean)])
    joint = share * beta.pdf(x, *small), (1 - share) * beta.pdf(x, *large)
    found = posterior(torch.tensor(x), "bmm").numpy()
    assert np.abs(found - joint[0] / (joint[0] + joint[1])).mean() < 0.03


def test_gaussians_are_recovered() -> None:
    """Equal widths: the logistic of a line, known exactly."""
    x = clusters(5000, 5000, apart=0.4, spread=(0.1, 0.1)).double()
    exact = torch.sigmoid(-(x - 0.5) * 0.4 / 0.01)
    assert (posterior(x) - exact).abs().mean() < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [(0.02, 0.4), (0.4, 0.02), (0.2, 0.2)])
def test_a_smaller_loss_is_never_less_clean(kind: Literal["gmm", "bmm"], spread: tuple[float, float]) -> None:
    """The wider component has more density at both ends."""
    x = clusters(1000, 1000, apart=0.6, spread=spread)
    found = posterior(x, kind)
    assert found[x.argsort()].diff().max() < 1e-6
    assert found[x.argmin()] > 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values",
    [[], [1.0], [2.0] * 5, [1.0, float("nan"), 2.0], [1.0, float("inf")], [-float("inf"), 0.0]],
)
def test_without_a_mixture_all_are_clean(kind: Literal["gmm", "bmm"], values: list[float]) -> None:
    assert posterior(torch.tensor(values), kind).tolist() == [1.0] * len(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0] * 9 + [1.0], [1e-30, 1e30], [0.0, 1e-40, 5.0]])
def test_hardly_a_mixture_is_still_finite(kind: Literal["gmm", "bmm"], values: list[float]) -> None:
    found = posterior(torch.tensor(values), kind)
    assert found.isfinite().all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_repetition_change_nothing(kind: Literal["gmm", "bmm"]) -> None:
    x = clusters(300, 300, apart=0.8).double()
    found = posterior(x, kind)
    assert torch.equal(found, posterior(x, kind))
    torch.testing.assert_close(found, posterior(1000 * x - 7, kind), rtol=1e-4, atol=1e-5)
