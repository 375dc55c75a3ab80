"""Parameters are read from signatures, and wrong values are one sentence."""

from typing import Annotated, Any, Literal

import pytest

from itmfeat.errors import UsageError
from itmfeat.parameters import Count, Ratio, Within, check, defaults


def method(
    setting: object,
    *,
    warm: Count = 3,
    share: Ratio = 0.5,
    size: Annotated[int, Within(2)] = 8,
    kind: Literal["soft", "hard"] = "soft",
    gate: float | None = None,
    learn: bool = True,
) -> None:
    """Stands for a loss or a method."""


def test_defaults_are_the_keyword_parameters() -> None:
    expected = {"warm": 3, "share": 0.5, "size": 8, "kind": "soft", "gate": None, "learn": True}
    assert defaults(method) == expected
    assert "kind" not in defaults(method, hidden={"kind"})


@pytest.mark.parametrize(
    "given", [{}, {"warm": 0, "share": 1}, {"gate": 2, "kind": "hard"}, {"gate": None, "learn": False}]
)
def test_right_values_pass(given: dict[str, Any]) -> None:
    check("robust", "method", method, given, defaults(method))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wram": 1}, "did you mean 'warm'"),
        ({"kind": "sfot"}, "did you mean 'soft'"),
        ({"warm": -1}, "robust.warm of method must be at least 0, not -1"),
        ({"share": 1.5}, r"must be in \[0, 1\], not 1.5"),
        ({"size": 1}, "at least 2"),
        ({"warm": 1.5}, "cannot be 1.5; its default is 3"),
        ({"warm": True}, "cannot be True"),
        ({"share": float("nan")}, "cannot be nan"),
        ({"learn": 1}, "cannot be 1"),
        ({"gate": "wide"}, "cannot be 'wide'"),
    ],
)
def test_wrong_values_are_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check("robust", "method", method, given, defaults(method))
