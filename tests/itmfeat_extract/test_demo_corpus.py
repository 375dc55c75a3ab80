"""The demo: the same bytes each time, captions that are true, pictures that show the scene."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from itmfeat.errors import ItmfeatError, UsageError
from itmfeat_extract.corpus import Corpus, SplitFractions, read
from itmfeat_extract.corpus.demo import generate, painting, words
from itmfeat_extract.corpus.demo.scenes import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    MOST,
    SHAPES,
    SIZES,
    Group,
    Scene,
    draw_scene,
)
from itmfeat_extract.corpus.demo.words import NUMBERS, SAID, describe, relation

SCENES = [draw_scene(np.random.RandomState(seed)) for seed in range(300)]


def digest(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("demo") / "absent"
    generate(root, images=60)
    return read("demo", root)


# ---- the dataset


def test_the_reader_reads_it_back(demo: Corpus) -> None:
    assert Counter(demo.image_splits) == {"train": 40, "val": 10, "test": 10}
    assert demo.image_files[0] == "images/demo_00000.png"
    assert len(demo.captions) == 300
    assert demo.caption_ids == list(range(300))
    assert (demo.caption_image == np.repeat(np.arange(60), 5)).all()
    with Image.open(demo.root / demo.image_files[0]) as picture:
        assert (picture.size, picture.mode) == ((224, 224), "RGB")


def test_it_is_the_same_to_the_byte(demo: Corpus, tmp_path: Path) -> None:
    generate(tmp_path / "same", images=60, seed=0)
    assert digest(tmp_path / "same") == digest(demo.root)
    generate(tmp_path / "other", images=60, seed=1)
    assert not set(digest(tmp_path / "other").values()) & set(digest(demo.root).values())


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    path = generate(tmp_path, images=6)
    before = path.stat().st_mtime_ns
    assert generate(tmp_path, images=6) == path
    assert path.stat().st_mtime_ns == before
    assert len(read("demo", tmp_path).image_ids) == 6


@pytest.mark.parametrize("damage", ["picture", "version", "text", "folder"])
def test_what_is_not_whole_is_drawn_again(tmp_path: Path, damage: str) -> None:
    path = generate(tmp_path, images=6, seed=2)
    whole = digest(tmp_path)
    if damage == "picture":
        (tmp_path / "images" / "demo_00003.png").unlink()
    elif damage == "version":
        path.write_text(path.read_text().replace('"version": ', '"version": 1000'))
    elif damage == "text":
        path.write_text("{")
    else:
        for picture in (tmp_path / "images").iterdir():
            picture.unlink()
        (tmp_path / "images").rmdir()
    generate(tmp_path, images=6, seed=2)
    assert digest(tmp_path) == whole


def test_a_missing_picture_is_drawn_by_the_reader(tmp_path: Path) -> None:
    """With the size and the seed of the demo that is there, not with the default ones."""
    generate(tmp_path, images=7, seed=2)
    whole = digest(tmp_path)
    (tmp_path / "images" / "demo_00003.png").unlink()
    assert len(read("demo", tmp_path).image_ids) == 7
    assert digest(tmp_path) == whole


def test_another_size_replaces_it(tmp_path: Path) -> None:
    generate(tmp_path, images=9)
    generate(tmp_path, images=6)
    assert len(read("demo", tmp_path).image_ids) == 6


def test_an_interrupted_one_has_no_split_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = generate(tmp_path, images=6)

    def stop(self: Image.Image, file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, images=8)
    assert not path.exists()


@pytest.mark.parametrize(("images", "seed"), [(5, 0), (6, -1), (6, 2**32)])
def test_settings_out_of_range(tmp_path: Path, images: int, seed: int) -> None:
    with pytest.raises(UsageError, match="at least 6 images, and a seed"):
        generate(tmp_path, images, seed)


def test_where_it_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ItmfeatError, match=r"cannot draw the demo into .*file: ") as caught:
        read("demo", tmp_path / "file")
    assert caught.value.exit_code == 1


def test_it_has_splits_of_its_own(demo: Corpus) -> None:
    with pytest.raises(UsageError, match="demo has its own splits"):
        read("demo", demo.root, SplitFractions(0.1))


def test_every_tenth_picture_is_a_twin(demo: Corpus) -> None:
    """Its captions fit another image too: the false negatives of real data."""
    images = json.loads((demo.root / "dataset_demo.json").read_text())["images"]
    scenes = [json.dumps(image["scene"]) for image in images]
    assert all(scenes[number] == scenes[number - 1] for number in range(9, 60, 10))
    assert len(set(scenes)) >= 50
    nine, eight = ((demo.root / demo.image_files[n]).read_bytes() for n in (9, 8))
    assert nine != eight
    assert images[9]["sentences"] != images[8]["sentences"]
    assert images[9]["split"] == images[8]["split"]


def test_it_is_in_karpathys_schema(demo: Corpus) -> None:
    image = json.loads((demo.root / "dataset_demo.json").read_text())["images"][3]
    assert image["sentids"] == [15, 16, 17, 18, 19]
    for sentence in image["sentences"]:
        assert sentence["imgid"] == image["imgid"] == 3
        assert sentence["tokens"] == re.findall("[a-z]+", sentence["raw"].lower())


# ---- scenes


def test_scenes_use_all_there_is() -> None:
    groups = [group for scene in SCENES for group in scene.groups]
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)
    assert {len(scene.groups) for scene in SCENES} == {1, 2, 3}
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.size for group in groups} == set(SIZES)
    assert {group.count for group in groups} == set(range(1, MOST + 1))
    places = {place for kind in ARRANGEMENTS for arrangement in kind for place in arrangement}
    assert {group.position for group in groups} == places


def test_groups_differ_in_shape_and_colour() -> None:
    for scene in SCENES:
        assert len({group.shape for group in scene.groups}) == len(scene.groups)
        assert len({group.colour for group in scene.groups}) == len(scene.groups)


def test_a_scene_without_an_arrangement() -> None:
    with pytest.raises(ValueError, match="no arrangement"):
        Scene("white", (Group("star", "red", "small", 1, "bottom left"),)).boxes()


# ---- pictures


def named(pixels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The name of each pixel's colour, (H, W, 3) -> (H, W); "" where it is a blend at an edge."""
    table = np.array([painting._RGB[name] for name in names])  # (names, 3)
    gaps = np.abs(pixels[:, :, None].astype(int) - table).max(axis=3)  # (H, W, names)
    return np.where(gaps.min(axis=2) < 16, np.array(names)[gaps.argmin(axis=2)], "")


def test_a_picture_shows_its_scene() -> None:
    """In the box of each group its colour, and no other group's; outside, the background."""
    for scene in SCENES[:60]:
        picture = np.asarray(painting.paint(scene, np.random.RandomState(7)))
        names = (scene.background, *(group.colour for group in scene.groups))
        side = painting.SIDE
        seen = named(picture, names)
        assert (seen == scene.background).mean() > 0.3
        for group, box in zip(scene.groups, scene.boxes(), strict=True):
            left, top, right, bottom = (int(part * side) for part in box)
            inside = (seen[top : bottom + 1, left : right + 1] == group.colour).sum()
            assert inside > 0.9 * (seen == group.colour).sum(), scene
            assert (inside / group.count < 600) == (group.size == "small"), scene


def test_every_shape_stays_in_the_picture_and_apart() -> None:
    for scene in SCENES:
        for group, box in zip(scene.groups, scene.boxes(), strict=True):
            spots = painting._places(group, box, np.random.RandomState(1))
            assert len(spots) == group.count
            for number, (x, y, radius) in enumerate(spots):
                assert radius * 1.1 < min(x, y, painting.SIDE - x, painting.SIDE - y)
                for a, b, other in spots[:number]:
                    assert np.hypot(x - a, y - b) > 0.8 * (radius + other)


# ---- captions


def plain(kinds: tuple[str, ...]) -> dict[str, str]:
    """Every way to say one of these words, plurals too -> the word."""
    endings = ("", "s", "es") if kinds is SHAPES else ("",)
    ways = ((kind, said) for kind in kinds for said in SAID.get(kind, (kind,)))
    return {said + ending: kind for kind, said in ways for ending in endings}


def mentioned(caption: str, kinds: tuple[str, ...]) -> list[str]:
    said = plain(kinds)
    pattern = "|".join(sorted(said, key=len, reverse=True))
    return [said[word] for word in re.findall(rf"\b(?:{pattern})\b", caption.lower())]


def test_captions_say_what_is_there() -> None:
    for scene in SCENES:
        captions = describe(scene, np.random.RandomState(0))
        assert len(set(captions)) == 5
        colour = {group.shape: group.colour for group in scene.groups}
        whole = 0
        for caption in captions:
            assert re.fullmatch(r"[A-Z][A-Za-z ,:]*\.", caption)
            shapes, colours = mentioned(caption, SHAPES), mentioned(caption, COLOURS)
            assert shapes or colours
            assert set(shapes) <= set(colour), (caption, scene)
            assert set(colours) <= set(colour.values()), (caption, scene)
            if len(shapes) == len(colours):  # each shape is named with its own colour
                assert [colour[shape] for shape in shapes] == colours, (caption, scene)
                whole += len(shapes) == len(scene.groups)
            assert set(mentioned(caption, BACKGROUNDS)) <= {scene.background}, (caption, scene)
        assert whole >= 2


def test_captions_count_and_measure_right() -> None:
    amounts = {word: number for number, word in enumerate(NUMBERS, start=1)}
    amounts |= {"a": 1, "an": 1, "a single": 1, "a pair of": 2}
    one_of = {
        name: "|".join(sorted(said, key=len, reverse=True))
        for name, said in (("amount", amounts), ("shape", plain(SHAPES)))
    }
    pattern = rf"\b({one_of['amount']}) ((?:[a-z]+ ){{0,2}}?)({one_of['shape']})\b"
    for scene in SCENES:
        groups, counted = {group.shape: group for group in scene.groups}, 0
        for caption in describe(scene, np.random.RandomState(1)):
            for amount, described, said in re.findall(pattern, caption.lower()):
                group = groups[plain(SHAPES)[said]]
                assert amounts[amount] == group.count, (caption, scene)
                assert set(mentioned(described, SIZES)) <= {group.size}, (caption, scene)
                counted += 1
            total = re.match(r"(\w+) shapes in all", caption)
            if total:
                assert amounts[total[1].lower()] == sum(group.count for group in scene.groups)
        assert counted >= 2 * len(scene.groups)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("left", "right", "to the left of"),
        ("right", "centre", "to the right of"),
        ("left", "centre", "to the left of"),
        ("top", "centre", "above"),
        ("bottom", "top", "below"),
        ("top left", "top right", "to the left of"),
        ("top right", "bottom left", "above"),
        ("bottom left", "bottom right", "to the left of"),
    ],
)
def test_relations(one: str, other: str, said: str) -> None:
    groups = [Group("star", "red", "small", 1, position) for position in (one, other)]
    assert relation(*groups) == said


def test_relations_are_those_of_the_boxes() -> None:
    for scene in SCENES:
        if len(scene.groups) > 1:
            said = relation(*scene.groups[:2])
            (_, _, right, bottom), (left, top, _, _) = scene.boxes()[:2]
            assert {"above": bottom <= top, "to the left of": right <= left}[said], scene


class First(np.random.RandomState):
    """Chooses what stands first."""

    def randint(self, *args: object, **kwargs: object) -> int:  # type: ignore[override]
        return 0

    def permutation(self, x: object) -> np.ndarray:  # type: ignore[override]
        return np.arange(x)  # type: ignore[call-overload]


def test_captions_in_full() -> None:
    cross = Group("cross", "orange", "large", 1, "top left")
    scene = Scene("black", (cross, Group("circle", "red", "small", 2, "bottom right")))
    assert describe(scene, First())[:2] == [
        "A large orange cross in the top left corner and two small red circles in the bottom "
        "right corner, on a black background.",
        "A picture of an orange cross and two red circles.",
    ]
    assert [kind(scene, First()) for kind in words._OTHERS] == [
        "a large orange cross above two red circles",
        "three shapes in all: one cross and two circles",
        "a cross in orange and two circles in red against a black background",
        "a black background with a cross in the top left corner and two circles in the bottom right corner",
        "only orange and red shapes on black",
        "you can see a large orange cross in the top left corner",
    ]
    alone = Scene("black", (replace(cross, position="top"),))
    assert "Exactly one cross and nothing else." in describe(alone, First())


def test_three_groups_are_listed_with_commas() -> None:
    places = ("left", "centre", "right")
    kinds = zip(("star", "circle", "cross"), ("red", "pink", "blue"), places, strict=True)
    groups = tuple(Group(shape, colour, "small", 3, place) for shape, colour, place in kinds)
    expected = "A picture of three red stars, three pink circles and three blue crosses."
    assert describe(Scene("grey", groups), First())[1] == expected
