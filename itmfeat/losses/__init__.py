"""Losses: pure functions of the similarities of a batch, one module a family.

To add one, write `def name(s: Similarities, *, parameter=default) -> Tensor` in its family's module and add
a line to `LOSSES`. For people with their own trainer::

    from itmfeat.losses import build, similarities

    loss = build("snll")
    loss(similarities(image, text, image_ids)).backward()
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from itmfeat.errors import UsageError, unknown
from itmfeat.losses.infonce import infonce
from itmfeat.losses.similarity import Similarities, similarities
from itmfeat.losses.snll import snll
from itmfeat.losses.triplet import triplet

__all__ = ["LOSSES", "Loss", "Objective", "Similarities", "build", "parameters", "similarities"]


@dataclass(frozen=True)
class Loss:
    """A line of `itmfeat losses`: the function, what it is, and which scalars training may adapt."""

    function: Callable[..., Tensor]
    equation: str
    source: str
    learned: tuple[str, ...] = ()  # adapted where `learn` is true; "scale" on a log axis


LOSSES: dict[str, Loss] = {
    "triplet": Loss(
        triplet, "1/B sum_i max_n [m + s_in - s_ii]+, both directions", "VSE++, arXiv 1707.05612"
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
        "SNLL, HUIT J. Sci. 26(2E)",
        ("scale", "shift"),
    ),
}


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a loss with their defaults; `learn` where it has scalars to learn."""
    if name not in LOSSES:
        raise unknown("loss", name, list(LOSSES))
    signature = inspect.signature(LOSSES[name].function)
    found = {key: value.default for key, value in signature.parameters.items() if key != "s"}
    found.pop("shift", None)  # only ever learned
    return found | ({"learn": True} if LOSSES[name].learned else {})


def build(name: str, runs: int | None = None, **given: Any) -> "Objective":
    """A loss ready to call. `runs` gives its learned scalars a run axis; unknown keys are an error."""
    defaults = parameters(name)
    for key, value in given.items():
        if key not in defaults:
            raise unknown(f"parameter of {name}", key, list(defaults))
        if not _fits(value, defaults[key]):
            raise UsageError(f"loss.{key} of {name} cannot be {value!r}; its default is {defaults[key]!r}")
    return Objective(LOSSES[name], defaults | given, runs)


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of the default; None stands for a number chosen by the loss."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if default is None or isinstance(default, float):
        return isinstance(value, int | float) or (value is None and default is None)
    return isinstance(value, type(default))


class Objective(nn.Module):
    """A loss with its parameters and learned scalars: Similarities (..., B, M) -> one value a run (...)."""

    def __init__(self, loss: Loss, given: Mapping[str, Any], runs: int | None) -> None:
        super().__init__()
        self.loss, self.given = loss, dict(given)
        learn = self.given.pop("learn", False)
        shape = () if runs is None else (runs,)
        # Deviations from the start, so that zero is the start whatever the batch size.
        self.learned = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name in loss.learned if learn}
        )

    def forward(self, s: Similarities) -> Tensor:
        """The loss of each run, (...)."""
        given = dict(self.given)
        for name, deviation in self.learned.items():
            value = deviation.unsqueeze(-1).unsqueeze(-1)
            given[name] = given[name] * value.exp() if name == "scale" else value
        return self.loss.function(s, **given)
