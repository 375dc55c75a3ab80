"""What of a picture a backbone sees, and which of its layers become features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itmfeat.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layers:
    """Layers by number: 0 is the embeddings, 1 the first block, -1 the last answer, -2 the block before.

    The last answer has passed the model's final norm where it has one; what other blocks give has not.
    """

    numbers: tuple[int, ...] = (-1,)
    way: str = "mean"  # or "concat": D becomes that of all of them

    @classmethod
    def parse(cls, text: str | None) -> Layers:
        """From the command line: `-2`, `mean:-1,-2` or `concat:-1,-4`; None is the last."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(?:(mean|concat):)?(-?\d{1,4}(?:,-?\d{1,4})*)", text)
        numbers = tuple(int(number) for number in found[2].split(",")) if found else ()
        if not found or len(set(numbers)) < len(numbers) or (len(numbers) > 1) != bool(found[1]):
            raise UsageError(f"layers are given as -2, mean:-1,-2 or concat:-1,-4, not {text!r}")
        return cls(numbers, found[1] or "mean")

    def __str__(self) -> str:
        several = f"{self.way}:" if len(self.numbers) > 1 else ""
        return several + ",".join(map(str, self.numbers))

    @property
    def last(self) -> bool:
        """Whether the model's answer is taken as it is."""
        return self.numbers == (-1,)

    @property
    def described(self) -> str:
        """As in a fingerprint."""
        return "last_hidden_state" if self.last else str(self)

    @property
    def suffix(self) -> str:
        """What distinguishes the file of another choice than the last: `@layer-2`, `@mean-1_-2`."""
        if self.last:
            return ""
        way = self.way if len(self.numbers) > 1 else "layer"
        return f"@{way}{'_'.join(map(str, self.numbers))}"

    @classmethod
    def named(cls, stem: str) -> Layers:
        """Those of a file, from its name: what `suffix` added."""
        found = re.search(r"@(layer|mean|concat)(-?\d+(?:_-?\d+)*)(?=@|$)", stem)
        if not found:
            return cls()
        numbers = tuple(int(number) for number in found[2].split("_"))
        return cls(numbers, "mean" if found[1] == "layer" else found[1])

    def of(self, answer: Sequence[Tensor] | None, last: Tensor) -> Tensor:
        """Hidden states and the last answer, each (B, L, D) -> (B, L, D), or wider if side by side."""
        if self.last:
            return last
        if answer is None:
            raise UsageError(f"layers {self} cannot be had: this model tells only its last answer")
        states = [*answer[:-1], last]
        if wrong := [number for number in self.numbers if not -len(states) <= number < len(states)]:
            raise UsageError(
                f"layer {wrong[0]} does not exist: this model has 0 (its embeddings) to {len(states) - 1}, "
                f"or -1 to {-len(states)}"
            )
        import torch

        chosen = [states[number].float() for number in self.numbers]
        return torch.cat(chosen, -1) if self.way == "concat" else torch.stack(chosen).mean(0)


@dataclass(frozen=True)
class View:
    """How to look at pictures; where nothing is said, as the checkpoint does."""

    image_size: int | None = None  # pixels an edge
    resize: str | None = None  # "crop" or "squash"
    layers: Layers = Layers()

    @property
    def suffix(self) -> str:
        """What is added to the name of a file, so that two extractions do not meet: `@384@squash`."""
        size, way = f"@{self.image_size}" if self.image_size else "", f"@{self.resize}" if self.resize else ""
        return size + way + self.layers.suffix

    @classmethod
    def named(cls, stem: str) -> View:
        """That of a file, from its name: what `suffix` added."""
        size, way = re.search(r"@(\d+)(?=@|$)", stem), re.search(r"@(crop|squash)(?=@|$)", stem)
        return cls(int(size[1]) if size else None, way[1] if way else None, Layers.named(stem))
