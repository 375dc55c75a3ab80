"""Losses: pure functions of the similarities of a batch, one module a family; README.md has the table.

To add one, write `def name(s: Similarities, *, parameter=default) -> Tensor` in its family's module and add
a line to `LOSSES`. For people with their own trainer::

    from itmfeat.losses import build, similarities

    loss = build("snll")
    loss(similarities(image, text, image_ids)).backward()
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from itmfeat.errors import UsageError, unknown
from itmfeat.losses.crcl import crcl
from itmfeat.losses.cream import cream
from itmfeat.losses.cross_entropy import gce, sce
from itmfeat.losses.decl import decl
from itmfeat.losses.fne import fne
from itmfeat.losses.goal import PAIRS, TRIPLETS, combination, goal
from itmfeat.losses.infonce import infonce
from itmfeat.losses.rcl import rcl_exp, rcl_gce, rcl_log, rcl_mae, rcl_tan
from itmfeat.losses.similarity import Similarities, similarities
from itmfeat.losses.snll import pcmepp, siglip, snll
from itmfeat.losses.tal import tal
from itmfeat.losses.triplet import triplet
from itmfeat.losses.weighting import circle, ms
from itmfeat.parameters import check, defaults

__all__ = ["LOSSES", "Loss", "Objective", "Similarities", "build", "parameters", "similarities"]


@dataclass(frozen=True)
class Loss:
    """A line of `itmfeat losses`: the function, what it is, and which scalars training may adapt."""

    function: Callable[..., Tensor]
    equation: str
    source: str
    learned: tuple[str, ...] = ()  # adapted where `learn` is true; "scale" on a log axis
    fixed: Mapping[str, Any] = field(default_factory=dict)  # parameters that this name decides
    unlearned: Mapping[str, Any] = field(default_factory=dict)  # values under which nothing is learned
    robust: str = "none"  # the method of `itmfeat.robust` that belongs to it
    soft_margin: bool = False  # whether it takes a margin of its own for each pair
    memory: Mapping[str, Any] = field(default_factory=dict)  # parameters of its memory, where it has one


RCL = "RCL, TPAMI 2023, code penghu-cs/RCL"

LOSSES: dict[str, Loss] = {
    "triplet": Loss(
        triplet,
        "1/B sum_i max_n [m + s_in - s_ii]+, both directions",
        "VSE++, arXiv 1707.05612",
        soft_margin=True,
    ),
    "triplet-sum": Loss(
        triplet,
        "1/B sum_i sum_n [m + s_in - s_ii]+, both directions",
        "VSE++, arXiv 1707.05612",
        fixed={"hardest": False, "warmup_epochs": 0},
        soft_margin=True,
    ),
    "infonce": Loss(
        infonce,
        "-1/2B sum_i log softmax(s_i / tau)_i, both directions",
        "CLIP, arXiv 2103.00020",
        ("scale",),
    ),
    "snll": Loss(
        snll,
        "-1/B sum_ij log sigmoid(y_ij (t s_ij + b))",
        "SNLL, HUIT J. Sci. 26(2E); reconstructed from the abstract",
        ("scale", "shift"),
        unlearned={"link": "affine"},
    ),
    "siglip": Loss(
        siglip,
        "-1/B sum_ij log sigmoid(y_ij (t s_ij + b)), b from -10",
        "SigLIP, arXiv 2303.15343",
        ("scale", "shift"),
    ),
    "pcmepp": Loss(
        pcmepp,
        "1/BM sum_ij bce(c - 2 a (1 - s_ij), y_ij), both directions",
        "PCME++ without variances, arXiv 2305.18171",
        ("scale", "shift"),
    ),
    "sce": Loss(
        sce,
        "1/2B sum_i -alpha log p_ii + 9.2 beta (1 - p_ii), both directions",
        "Symmetric cross entropy, arXiv 1908.06112",
    ),
    "gce": Loss(
        gce, "1/2B sum_i (1 - p_ii^q) / q, both directions", "Generalised cross entropy, arXiv 1805.07836"
    ),
    "ms": Loss(
        ms,
        "1/B sum_i 1/a log(1 + sum_k e^(-a (s_ik - l))) + 1/b log(1 + sum_n e^(b (s_in - l)))",
        "Multi-similarity, arXiv 1904.06627",
    ),
    "circle": Loss(
        circle,
        "1/B sum_i log(1 + sum_n e^(g w_n (s_in - m)) sum_k e^(-g w_k (s_ik - 1 + m)))",
        "Circle loss, arXiv 2002.10857",
    ),
    "tal": Loss(
        tal,
        "1/B sum_i [m - sum_k alpha_ik s_ik + tau log sum_n e^(s_in / tau)]+, both directions",
        "TAL of RDE, arXiv 2308.09911",
        soft_margin=True,
    ),
    "fne": Loss(
        fne,
        "1/B sum_i [m + s_ik - d_i]+, k drawn from negatives that hardly match, both directions",
        "FNE, arXiv 2308.04380",
        soft_margin=True,
        memory={"memory": 8224, "momentum": 0.995},
    ),
    "rcl-log": Loss(rcl_log, "-1/B sum_i sum_n log(1 - p_in), both directions", RCL),
    "rcl-tan": Loss(rcl_tan, "1/B sum_i sum_n tan(p_in), both directions", RCL),
    "rcl-exp": Loss(rcl_exp, "1/B sum_i sum_n exp(p_in - 1), both directions", RCL),
    "rcl-gce": Loss(rcl_gce, "1/B sum_i sum_n (1 - (1 - p_in)^q) / q, both directions", RCL),
    "rcl-mae": Loss(rcl_mae, "1/B sum_i 1 - p_ii, both directions", RCL),
    "crcl": Loss(
        crcl,
        "1/B sum_i -y_i log p_ii + 5 sum_n tan p_in / (sum_k tan p_ik)^(1 - y_i), both directions",
        "CRCL, arXiv 2310.17468",
        robust="scc",
    ),
    "decl": Loss(
        decl,
        "1/B sum_i [|y_i - p_i|^2 + var p_i + k KL(Dir(a_i), Dir(1))] + h sum_i y_i top_n [m + s_in - s_ii]+"
        ", both directions",
        "DECL, ACM MM 2022, code QinYang79/DECL",
        robust="argmax",
    ),
    "cream": Loss(
        cream,
        "-1/2B sum_ij t_ij log p_ij, t_ii = y_i, t_in = (1 - y_i) [s_in]+ / sum_m [s_im]+, both directions",
        "CREAM, TIP 2024, code XLearning-SCU/2024-TIP-CREAM",
        robust="cream",
    ),
    **{
        f"goal-{of_triplet}-{of_pair}": Loss(
            goal,
            f"gradient w_t (w_n dn - w_p dp), w_t = {TRIPLETS[of_triplet][0]}, "
            f"(w_p, w_n) = ({PAIRS[of_pair][0]})",
            "GOAL, arXiv 2210.13188",
            fixed=combination(of_triplet, of_pair),
        )
        for of_triplet in TRIPLETS
        for of_pair in PAIRS
    },
}


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a loss with their defaults; `learn` where it has scalars to learn."""
    if name not in LOSSES:
        raise unknown("loss", name, list(LOSSES))
    loss = LOSSES[name]
    found = defaults(loss.function, {"shift", *loss.fixed})  # a shift is only ever learned
    return {**found, **loss.memory} | ({"learn": True} if loss.learned else {})


def build(name: str, runs: int | None = None, **given: Any) -> "Objective":
    """A loss ready to call. `runs` gives its learned scalars a run axis; unknown keys are an error."""
    known = parameters(name)
    check("loss", name, LOSSES[name].function, given, known)
    if given.get("memory", 1) < 1 or not 0 <= given.get("momentum", 0) <= 1:
        raise UsageError(f"loss.memory of {name} must be at least 1 and loss.momentum lie in [0, 1]")
    return Objective(LOSSES[name], known | given, runs)


class Objective(nn.Module):
    """A loss with its parameters and learned scalars: Similarities (..., B, M) -> one value a run (...)."""

    def __init__(self, loss: Loss, given: Mapping[str, Any], runs: int | None) -> None:
        super().__init__()
        self.loss, self.given = loss, {**loss.fixed, **given}
        self.memory = {key: self.given.pop(key) for key in loss.memory}
        unused = any(self.given[key] == value for key, value in loss.unlearned.items())
        learn = self.given.pop("learn", False) and not unused
        shape = () if runs is None else (runs,)
        # Deviations from the start, so that zero is the start whatever the batch size.
        self.learned = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name in loss.learned if learn}
        )

    def warm(self, s: Similarities) -> bool:
        """Whether a batch belongs to the loss's own warm-up."""
        return s.warm(self.given.get("warmup_epochs", 0))

    def forward(self, s: Similarities) -> Tensor:
        """The loss of each run, (...)."""
        given = dict(self.given)
        for name, deviation in self.learned.items():
            value = deviation.unsqueeze(-1).unsqueeze(-1)
            given[name] = given[name] * value.exp() if name == "scale" else value
        return self.loss.function(s, **given)
