"""Robust training: methods that say how far each training pair can be trusted; README.md has the table.

To add one, write a subclass of `Method` in a module of its own and add a line to `METHODS`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from itmfeat.errors import UsageError, unknown
from itmfeat.losses import LOSSES
from itmfeat.parameters import check, defaults
from itmfeat.robust.argmax import Argmax
from itmfeat.robust.bicro import BiCro
from itmfeat.robust.cream import Cream
from itmfeat.robust.method import Labels, Means, Method, Scores, Setting, margin_factor, matched, scored
from itmfeat.robust.ncr import NCR
from itmfeat.robust.osa import OSA
from itmfeat.robust.repair import Repair
from itmfeat.robust.scc import SCC
from itmfeat.robust.split import Split

__all__ = [
    "METHODS",
    "Labels",
    "Means",
    "Method",
    "Scores",
    "Setting",
    "build",
    "margin_factor",
    "matched",
    "parameters",
    "scored",
    "use",
    "validate",
]

Use = Literal["confidence", "margin"]


@dataclass(frozen=True)
class Recipe:
    """A line of `itmfeat robust`: the method, what it does, and where its labels go."""

    method: type[Method]
    mechanism: str
    source: str
    uses: tuple[Use, ...] = ("margin", "confidence")  # the first that the loss can take


METHODS: dict[str, Recipe] = {
    "none": Recipe(Method, "every annotated pair counts fully", "the plain loss", ("confidence",)),
    "split": Recipe(
        Split,
        "pairs of small loss are clean by a mixture of two components, fitted in each epoch",
        "Arazo et al., arXiv 1904.11238",
        ("confidence", "margin"),
    ),
    "ncr": Recipe(
        NCR,
        "two nets split the pairs for each other and soften the margins of doubtful ones",
        "NCR, NeurIPS 2021",
    ),
    "bicro": Recipe(
        BiCro,
        "trusted pairs judge all others by similarity ratios in frozen uni-modal features",
        "BiCro, CVPR 2023",
    ),
    "repair": Recipe(
        Repair,
        "rank correlation of the distances to trusted pairs in frozen uni-modal features",
        "REPAIR, arXiv 2403.08224; reconstructed from the abstract",
    ),
    "osa": Recipe(
        OSA,
        "static weights from the cosines of a frozen cross-modal pair of backbones",
        "OSA, arXiv 2410.01944",
        ("confidence",),
    ),
    "scc": Recipe(
        SCC,
        "labels follow the probability of each pair slowly and outlive restarts of the net",
        "CRCL, arXiv 2310.17468",
        ("confidence",),
    ),
    "argmax": Recipe(
        Argmax,
        "a pair is clean where it is the most similar one of its batch, anew in each epoch",
        "DECL, ACM MM 2022",
        ("confidence",),
    ),
    "cream": Recipe(
        Cream,
        "two nets split the pairs into clean, hard and noisy ones; hard and noisy ones join later",
        "CREAM, TIP 2024",
        ("confidence",),
    ),
}


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a method with their defaults."""
    if name not in METHODS:
        raise unknown("robust method", name, list(METHODS))
    found = defaults(METHODS[name].method.__init__)
    return found | ({"use": "auto"} if len(METHODS[name].uses) > 1 else {})


def build(name: str, setting: Setting, **given: Any) -> Method:
    """A method ready for one run; unknown keys are an error. `use` is the trainer's affair."""
    validate(name, **given)
    given.pop("use", None)
    return METHODS[name].method(setting, **given)


def validate(name: str, **given: Any) -> None:
    """A UsageError unless these are parameters of the method."""
    known = parameters(name)
    check("robust", name, METHODS[name].method.__init__, given, known)


def use(name: str, loss: str, asked: str = "auto") -> Use:
    """Where the labels of a method go in a loss: into confidences or into margins."""
    uses, soft = METHODS[name].uses, LOSSES[loss].soft_margin
    if asked == "auto":
        return next(way for way in uses if way == "confidence" or soft)
    for way in uses:
        if way == asked and (way == "confidence" or soft):
            return way
    if asked == "margin":
        losses = ", ".join(found for found, facts in LOSSES.items() if facts.soft_margin)
        raise UsageError(
            f"{loss} takes no soft margins: try --set robust.use=confidence, or a loss that does: {losses}"
        )
    raise unknown(f"robust.use of {name}", asked, ["auto", *uses])
