"""Broken and odd image files: each is decoded as a viewer would show it, or named in one sentence."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from itmfeat.errors import DataError
from itmfeat_extract.backbones.preprocess import to_rgb
from itmfeat_extract.corpus import Corpus, read
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
    **{
        f"plain.{form}": (file(flat("RGB", RED, (64, 64)), form), RED)
        for form, codec in (("JPEG2000", "jpg_2000"), ("AVIF", "avif"))
        if features.check(codec)
    },
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
