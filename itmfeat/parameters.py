"""Parameters of a loss or a method, read from its signature, and what is wrong with given ones."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from itmfeat.errors import UsageError, unknown


@dataclass(frozen=True)
class Within:
    """An annotation: the numbers that a parameter may be."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low:g}" if math.isinf(self.high) else f"in [{self.low:g}, {self.high:g}]"


Count = Annotated[int, Within(0)]
Ratio = Annotated[float, Within(0, 1)]


def defaults(function: Callable[..., Any], hidden: Collection[str] = ()) -> dict[str, Any]:
    """The keyword parameters of a function with their defaults, but the hidden ones."""
    found = inspect.signature(function).parameters.items()
    return {
        key: value.default
        for key, value in found
        if value.kind is inspect.Parameter.KEYWORD_ONLY and key not in hidden
    }


def check(
    section: str, name: str, function: Callable[..., Any], given: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """A UsageError unless the values given for `name` are known parameters of the right kind.

    `section` is the key of the configuration that they stand under, as in "loss".
    """
    hints = get_type_hints(function, include_extras=True)
    for key, value in given.items():
        if key not in known:
            raise unknown(f"parameter of {name}", key, list(known))
        if get_origin(hints.get(key)) is Literal and value not in get_args(hints[key]):
            raise unknown(f"{section}.{key} of {name}", str(value), list(get_args(hints[key])))
        if not _fits(value, known[key]):
            raise UsageError(f"{section}.{key} of {name} cannot be {value!r}; its default is {known[key]!r}")
        for bounds in getattr(hints.get(key), "__metadata__", ()):
            if not bounds.low <= value <= bounds.high:
                raise UsageError(f"{section}.{key} of {name} must be {bounds}, not {value:g}")


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of the default; None stands for a number chosen by the function."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if default is None or isinstance(default, float):
        number = isinstance(value, int | float) and math.isfinite(value)
        return number or (value is None and default is None)
    return isinstance(value, type(default))
