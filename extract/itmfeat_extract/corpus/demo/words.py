"""Captions of a scene: five sentences that are true of it and each tell something else."""

from collections.abc import Callable, Sequence

import numpy as np

from itmfeat_extract.corpus.demo.scenes import Group, Scene, choose

# The plain word first, then what people say as well.
SAID = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "hexagon": ("hexagon",),
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
    "centre": ("in the middle", "in the centre"),
    "top left": ("in the top left corner", "at the upper left"),
    "top right": ("in the top right corner", "at the upper right"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
    "background": ("background", "backdrop"),
}
NUMBERS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),  # three groups of four
)

Random = np.random.RandomState


def describe(scene: Scene, random: Random) -> list[str]:
    """Five captions in random order: two that name every group, three of the other kinds."""
    others = [kind for kind in _OTHERS if kind is not _relation or len(scene.groups) > 1]
    picked = [others[number] for number in random.permutation(len(others))[:3]]
    captions = [kind(scene, random) for kind in (_everything, _things, *picked)]
    return [_sentence(captions[number]) for number in random.permutation(len(captions))]


def _everything(scene: Scene, random: Random) -> str:
    placed = [f"{_group(group, random)} {_say(group.position, random)}" for group in scene.groups]
    return f"{_listed(placed)}, on {_ground(scene, random)}"


def _things(scene: Scene, random: Random) -> str:
    start = choose(("a picture of", "an image with", "a drawing that shows"), random)
    return f"{start} {_listed([_group(group, random, size=False) for group in scene.groups])}"


def _relation(scene: Scene, random: Random) -> str:
    one, other = scene.groups[0], scene.groups[1]
    return f"{_group(one, random)} {relation(one, other)} {_group(other, random, size=False)}"


def _tally(scene: Scene, random: Random) -> str:
    total = sum(group.count for group in scene.groups)
    parts = [f"{NUMBERS[group.count - 1]} {_shape(group, random)}" for group in scene.groups]
    if len(parts) == 1:
        return f"exactly {parts[0]} and nothing else"
    return f"{NUMBERS[total - 1]} shapes in all: {_listed(parts)}"


def _in_colour(scene: Scene, random: Random) -> str:
    parts = [f"{_bare(group, random)} in {_say(group.colour, random)}" for group in scene.groups]
    return f"{_listed(parts)} against {_ground(scene, random)}"


def _ground_first(scene: Scene, random: Random) -> str:
    parts = [f"{_bare(group, random)} {_say(group.position, random)}" for group in scene.groups]
    return f"{_ground(scene, random)} with {_listed(parts)}"


def _colours(scene: Scene, random: Random) -> str:
    named = _listed([_say(group.colour, random) for group in scene.groups])
    return f"{choose(('only', 'just', 'simple'), random)} {named} shapes on {scene.background}"


def _one_group(scene: Scene, random: Random) -> str:
    group = choose(scene.groups, random)
    start = choose(("you can see", "look at", "notice"), random)
    return f"{start} {_group(group, random)} {_say(group.position, random)}"


_OTHERS: tuple[Callable[[Scene, Random], str], ...] = (
    _relation,
    _tally,
    _in_colour,
    _ground_first,
    _colours,
    _one_group,
)


def relation(one: Group, other: Group) -> str:
    """Where one group is, seen from the other."""
    if _height(one) != _height(other):
        return "above" if _height(one) < _height(other) else "below"
    return "to the left of" if _side(one) < _side(other) else "to the right of"


def _height(group: Group) -> int:
    return ("top" not in group.position) + ("bottom" in group.position)


def _side(group: Group) -> int:
    return ("left" not in group.position) + ("right" in group.position)


def _group(group: Group, random: Random, size: bool = True) -> str:
    colour, shape = _say(group.colour, random), _shape(group, random)
    words = [_say(group.size, random), colour, shape] if size else [colour, shape]
    return _counted(group, " ".join(words), random)


def _bare(group: Group, random: Random) -> str:
    return _counted(group, _shape(group, random), random)


def _shape(group: Group, random: Random) -> str:
    word = _say(group.shape, random)
    if group.count == 1:
        return word
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _counted(group: Group, words: str, random: Random) -> str:
    if group.count == 1:
        return choose((_article(words), f"one {words}", f"a single {words}"), random)
    if group.count == 2:
        return choose((f"two {words}", f"a pair of {words}"), random)
    return f"{NUMBERS[group.count - 1]} {words}"


def _ground(scene: Scene, random: Random) -> str:
    return f"a {scene.background} {_say('background', random)}"


def _say(word: str, random: Random) -> str:
    return choose(SAID[word], random)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
