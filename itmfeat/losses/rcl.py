"""RCL: complementary contrastive losses, which learn from what a query does not match."""

from collections.abc import Callable

import torch
from torch import Tensor

from itmfeat.losses.similarity import Similarities


def rcl_log(s: Similarities, *, scale: float = 20.0) -> Tensor:
    """RCL with -log(1 - p), their first choice: (..., B, M) -> (...). Source and edges: `_complementary`."""
    return _complementary(s, scale, lambda p, log_rest: -log_rest)


def rcl_tan(s: Similarities, *, scale: float = 20.0) -> Tensor:
    """RCL with tan p: (..., B, M) -> (...). Source and edges: `_complementary`."""
    return _complementary(s, scale, lambda p, log_rest: p.tan())


def rcl_exp(s: Similarities, *, scale: float = 20.0) -> Tensor:
    """RCL with exp(-(1 - p)), never below 1/e: (..., B, M) -> (...). Source and edges: `_complementary`."""
    return _complementary(s, scale, lambda p, log_rest: (p - 1).exp())


def rcl_gce(s: Similarities, *, scale: float = 20.0, q: float = 0.5) -> Tensor:
    """RCL with (1 - (1 - p)^q) / q, q in (0, 1]: (..., B, M) -> (...). Source and edges: `_complementary`."""
    return _complementary(s, scale, lambda p, log_rest: -torch.expm1(q * log_rest) / q)


def rcl_mae(s: Similarities, *, scale: float = 20.0) -> Tensor:
    """RCL with p, in all 1 - p_ii: (..., B, M) -> (...). Source and edges: `_complementary`."""
    return _complementary(s, scale, lambda p, log_rest: p)


def _complementary(s: Similarities, scale: float, cost: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """RCL (Hu et al., TPAMI 2023, github.com/penghu-cs/RCL): (..., B, M) -> (...).

        L = 1/B sum_i sum_n f(p_in),    p_i = softmax_j(scale * s_ij), n negative, both directions

    `cost` gives f from p and log(1 - p), both (..., B, M). `scale` is 1/tau, tau = 0.05. A match that the
    model finds unlikely draws hardly any gradient, so a wrong caption does little harm. Other captions of
    the same image leave the softmax. A query without a negative costs nothing.

    1 - p cancels only where p is near 1, which at most the hardest negative can be: there log(1 - p) is
    the log-sum-exp of all other candidates less that of all. The official code adds 1e-10 instead, and can
    draw a random subset of the negatives, which is left out. q = 0.5 is the default of its class.
    """
    total = torch.zeros((), device=s.i2t.device)
    for similarity in (s.i2t, s.t2i):
        logits = (scale * similarity).masked_fill(s.others, -torch.inf)
        above = logits.logsumexp(-1, keepdim=True)
        place = logits.detach().masked_fill(s.positive, -torch.inf).argmax(-1, keepdim=True)
        hardest = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, place, True) & s.negative
        without = logits.masked_fill(hardest, -torch.inf).logsumexp(-1, keepdim=True)
        p = (logits - above).exp().masked_fill(s.positive, 0)
        log_rest = torch.log1p(-p.masked_fill(hardest, 0)).where(~hardest, without - above)
        costs = cost(p, log_rest).masked_fill(s.positive, 0)
        total = total + s.weight_pairs(costs.sum(-1)).mean(-1)
    return total
