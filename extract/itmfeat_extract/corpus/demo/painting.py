"""A scene as a picture. Exact places, sizes, angles and tints are jittered: no two are alike."""

import math

import numpy as np
from PIL import Image, ImageDraw

from itmfeat_extract.corpus.demo.scenes import Box, Group, Scene

SIDE = 224
_FINE = 2  # drawn at twice the size, then reduced: smooth edges

_RGB = {
    "red": (214, 32, 38),
    "orange": (245, 134, 20),
    "yellow": (248, 220, 40),
    "green": (38, 160, 60),
    "blue": (36, 84, 210),
    "purple": (124, 44, 164),
    "pink": (248, 130, 188),
    "brown": (124, 76, 36),
    "white": (250, 250, 250),
    "black": (14, 14, 14),
    "grey": (150, 152, 154),
    "beige": (232, 218, 188),
}


def paint(scene: Scene, random: np.random.RandomState) -> Image.Image:
    """The picture of a scene, `SIDE` x `SIDE`."""
    canvas = Image.new("RGB", (SIDE * _FINE,) * 2, _tint(scene.background, 4, random))
    brush = ImageDraw.Draw(canvas)
    for group, box in zip(scene.groups, scene.boxes(), strict=True):
        colour = _tint(group.colour, 9, random)
        for x, y, radius in _places(group, box, random):
            turn = random.uniform(-9, 9)
            brush.polygon(_corners(group.shape, x * _FINE, y * _FINE, radius * _FINE, turn), colour)
    return canvas.reduce(_FINE)


def _tint(colour: str, spread: int, random: np.random.RandomState) -> tuple[int, int, int]:
    shift = random.randint(-spread, spread + 1, 3)
    red, green, blue = np.clip(np.array(_RGB[colour]) + shift, 0, 255)
    return int(red), int(green), int(blue)


def _places(group: Group, box: Box, random: np.random.RandomState) -> list[tuple[float, float, float]]:
    """Centre and radius of each shape of a group: a cell of the box each, and some play in it."""
    left, top, right, bottom = (part * SIDE for part in box)
    columns = _columns(group.count, (right - left) / (bottom - top))
    rows = math.ceil(group.count / columns)
    wide, high = (right - left) / columns, (bottom - top) / rows
    radius = 12.5 if group.size == "small" else min(40, 0.43 * min(wide, high))
    places = []
    for number in range(group.count):
        row, column = divmod(number, columns)
        in_row = min(columns, group.count - row * columns)
        x = (left + right) / 2 + (column - (in_row - 1) / 2) * wide
        y = top + (row + 0.5) * high
        play = 0.7 * np.array([wide / 2 - radius, high / 2 - radius])
        dx, dy = play.clip(0, 16) * random.uniform(-1, 1, 2)
        places.append((x + float(dx), y + float(dy), radius * random.uniform(0.92, 1.05)))
    return places


def _columns(count: int, ratio: float) -> int:
    """In how many columns `count` shapes stand in a box `ratio` times as wide as high."""
    if ratio >= 1.5 and count <= math.ceil(ratio) + 1:
        return count
    if ratio <= 1 / 1.5 and count <= math.ceil(1 / ratio) + 1:
        return 1
    return min(count, 2)


def _corners(shape: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    angle = math.radians(turn)
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in _OUTLINES[shape]]


def _ring(*radii: float, corners: int, start: float = -90.0) -> list[tuple[float, float]]:
    """Corners around the origin, the first at `start` degrees (up), their distances in turn."""
    angles = [math.radians(start + 360 * corner / corners) for corner in range(corners)]
    lengths = [radii[corner % len(radii)] for corner in range(corners)]
    return [
        (length * math.cos(angle), length * math.sin(angle))
        for angle, length in zip(angles, lengths, strict=True)
    ]


_CROSS = [(-1.0, -0.32), (-0.32, -0.32), (-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32)]

_OUTLINES = {
    "circle": _ring(0.95, corners=48),
    "square": _ring(1.18, corners=4, start=-45),
    "triangle": _ring(1.1, corners=3),
    "diamond": _ring(1.12, 0.66, corners=4),
    "star": _ring(1.12, 0.46, corners=10),
    "cross": _CROSS + [(-a, -b) for a, b in _CROSS],
    "hexagon": _ring(1.04, corners=6, start=0),
}
