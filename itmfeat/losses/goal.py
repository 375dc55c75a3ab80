"""GOAL: gradients of a triplet chosen directly, as products of a triplet weight and pair weights."""

from typing import Any

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities
from itmfeat.losses.triplet import triplet as sum_of_triplets

TRIPLETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "con": ("1", ()),
    "nca": ("sigmoid(tau (n - p))", ("tau",)),
    "cir": ("sigmoid(tau (n^2 + (1 - p)^2 - 1/2))", ("tau",)),
}
"""Triplet weights w_t of p = s_ii and its hardest negative n: equation, parameters."""

PAIRS: dict[str, tuple[str, tuple[str, ...]]] = {
    "con": ("1, 1", ()),
    "lin": ("1 - p, n", ("clamp",)),
    "sig": ("sigmoid(-a (p - level)), sigmoid(b (n - level))", ("a", "b", "level")),
    "lin_ms": ("(1 - R+)(1 - p), (1 + R-) n", ("eps", "clamp")),
    "sig_ms": (
        "1/(exp(a (p - level)) + R+), 1/(exp(-b (n - level)) + R-)",
        ("a", "b", "level", "eps"),
    ),
}
"""Pair weights w_p, w_n: equation, parameters. R are the relative similarities of multi-similarity."""


def goal(
    s: Similarities,
    *,
    triplet: str = "nca",
    pair: str = "con",
    tau: float = 10.0,
    a: float = 2.0,
    b: float = 10.0,
    level: float = 0.5,
    eps: float = 0.1,
    clamp: bool = True,
    gate: float | None = None,
    warmup_epochs: int = 1,
) -> Tensor:
    """GOAL (Xuan and Chen, WACV 2023, arXiv 2210.13188): (..., B, M) -> (...).

        G = 1/B sum_i sg[w_t w_n] s_in - sg[w_t w_p] s_ii    over both directions, n the hardest negative

    The weights of `TRIPLETS` and `PAIRS` are constants to autograd (sg), so the gradient with respect to
    the normalised embeddings is the one that the paper states. THE VALUE IS NOT THE OBJECTIVE: for most
    combinations none exists, and the value may rise or be negative while training goes well; watch the
    recall. `gate` = m leaves out triplets satisfied by m (n - p + m <= 0); None keeps all, as published.

    The official code is repaired where it contradicts itself: it obeys the upstream gradient, masks the
    captions of the same image, gives an empty R the self term 1 in `sig_ms` (else w_n reaches exp(b / 2)),
    counts zero differences in `lin_ms`, and `clamp` removes negative pair weights, which would attract a
    negative or repel a match. It divides by B; the code sums. tau is 1 in the code's class and 10 in its
    weights; 1 is nearly `con`. The first `warmup_epochs` epochs take the sum of triplets, as a hardest
    negative collapses from a random start. A query without a negative costs nothing.
    """
    if s.warm(warmup_epochs):
        return sum_of_triplets(s, hardest=False)
    total = torch.zeros((), device=s.i2t.device)
    alone = s.positive.all(-1)  # (B,) queries without a negative
    for similarity in (s.i2t, s.t2i):
        n, place = similarity.masked_fill(s.positive, -torch.inf).max(-1)  # (..., B) both
        n = n.masked_fill(alone, 0)
        with torch.no_grad():
            fixed_p, fixed_n = s.pair.detach(), n.detach()
            w_t = _triplet_weight(triplet, fixed_p, fixed_n, tau)
            if gate is not None:
                w_t = w_t * (fixed_n - fixed_p + gate > 0)
            # The negatives but the hardest, (..., B, M)
            rest = s.negative.expand(similarity.shape).scatter(-1, place.unsqueeze(-1), False)
            w_p, w_n = _pair_weights(pair, fixed_p, fixed_n, similarity, rest, a=a, b=b, level=level, eps=eps)
            if clamp:
                w_p, w_n = w_p.clamp(min=0), w_n.clamp(min=0)
        cost = (w_t * w_n * n - w_t * w_p * s.pair).masked_fill(alone, 0)
        total = total + s.weight_pairs(cost).mean(-1)
    return total


def _triplet_weight(name: str, p: Tensor, n: Tensor, tau: float) -> Tensor:
    """w_t of each triplet, (..., B)."""
    if name == "nca":
        return torch.sigmoid(tau * (n - p))
    if name == "cir":
        return torch.sigmoid(tau * (n.square() + (1 - p).square() - 0.5))
    return torch.ones_like(p)


def _pair_weights(
    name: str,
    p: Tensor,
    n: Tensor,
    similarity: Tensor,
    rest: Tensor,
    *,
    a: float,
    b: float,
    level: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """w_p and w_n of each triplet, (..., B). `rest` (..., B, M) marks the negatives but the hardest."""
    if name == "con":
        return torch.ones_like(p), torch.ones_like(n)
    if name == "lin":
        return 1 - p, n
    if name == "sig":
        return torch.sigmoid(-a * (p - level)), torch.sigmoid(b * (n - level))
    # Matches of the batch hardly above this negative, (..., B, B), and negatives hardly below any match.
    others = p.unsqueeze(-2)
    near = (others <= n.unsqueeze(-1) + eps) & ~torch.eye(p.shape[-1], dtype=torch.bool, device=p.device)
    hard = rest & (similarity >= p.amin(-1)[..., None, None] - eps)
    above, below = p.unsqueeze(-1) - others, n.unsqueeze(-1) - similarity
    if name == "lin_ms":
        return (1 - _mean(above, near, 0)) * (1 - p), (1 + _mean(below, hard, 0)) * n
    return (
        1 / ((a * (p - level)).exp() + _mean((a * above).exp(), near, 1)),
        1 / ((-b * (n - level)).exp() + _mean((-b * below).exp(), hard, 1)),
    )


def _mean(values: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Mean over the last axis where `mask` holds, (..., B, M) -> (..., B); `empty` where it never does."""
    count = mask.sum(-1)
    mean = values.where(mask, 0).sum(-1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, empty)


def combination(triplet: str, pair: str) -> dict[str, Any]:
    """What the entry goal-TRIPLET-PAIR holds fixed: the two names and the parameters that it does not use."""
    used = {"gate", "warmup_epochs", *TRIPLETS[triplet][1], *PAIRS[pair][1]}
    defaults: dict[str, Any] = goal.__kwdefaults__ or {}
    unused = {key: value for key, value in defaults.items() if key not in used}
    return unused | {"triplet": triplet, "pair": pair}
