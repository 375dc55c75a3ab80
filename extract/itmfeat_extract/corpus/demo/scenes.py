"""What a demo picture shows: one to three groups of equal shapes, each in a place of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Box = tuple[float, float, float, float]  # left, top, right, bottom, as parts of the picture

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "hexagon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
BACKGROUNDS = ("white", "black", "grey", "beige")
SIZES = ("small", "large")
MOST = 4  # shapes in a group

# The arrangements of one, two and three groups: where each group stands, in reading order.
ARRANGEMENTS: tuple[tuple[dict[str, Box], ...], ...] = (
    (
        {"centre": (0.2, 0.2, 0.8, 0.8)},
        {"left": (0, 0.15, 0.5, 0.85)},
        {"right": (0.5, 0.15, 1, 0.85)},
        {"top": (0.15, 0, 0.85, 0.5)},
        {"bottom": (0.15, 0.5, 0.85, 1)},
    ),
    (
        {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1)},
        {"top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)},
        {"top left": (0, 0, 0.5, 0.5), "bottom right": (0.5, 0.5, 1, 1)},
        {"top right": (0.5, 0, 1, 0.5), "bottom left": (0, 0.5, 0.5, 1)},
    ),
    (
        {"left": (0, 0, 1 / 3, 1), "centre": (1 / 3, 0, 2 / 3, 1), "right": (2 / 3, 0, 1, 1)},
        {"top": (0, 0, 1, 1 / 3), "centre": (0, 1 / 3, 1, 2 / 3), "bottom": (0, 2 / 3, 1, 1)},
        {"top left": (0, 0, 0.5, 0.5), "top right": (0.5, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)},
        {"top": (0, 0, 1, 0.5), "bottom left": (0, 0.5, 0.5, 1), "bottom right": (0.5, 0.5, 1, 1)},
    ),
)


@dataclass(frozen=True)
class Group:
    """Equal shapes that stand together."""

    shape: str
    colour: str
    size: str
    count: int
    position: str


@dataclass(frozen=True)
class Scene:
    """A background and its groups. No two groups share a shape or a colour: captions stay true."""

    background: str
    groups: tuple[Group, ...]

    def boxes(self) -> list[Box]:
        """The place of each group."""
        positions = [group.position for group in self.groups]
        for places in ARRANGEMENTS[len(positions) - 1]:
            if list(places) == positions:
                return list(places.values())
        raise ValueError(f"no arrangement has the positions {positions}")


def choose(options: Sequence[T], random: np.random.RandomState) -> T:
    """One of the options."""
    return options[random.randint(len(options))]


def draw_scene(random: np.random.RandomState) -> Scene:
    """A scene at random."""
    places = choose(choose(ARRANGEMENTS, random), random)
    shapes, colours = random.permutation(SHAPES), random.permutation(COLOURS)
    groups = tuple(
        Group(
            shape=str(shapes[number]),
            colour=str(colours[number]),
            size=choose(SIZES, random),
            count=1 + int(random.randint(MOST)),
            position=position,
        )
        for number, position in enumerate(places)
    )
    return Scene(choose(BACKGROUNDS, random), groups)
