"""Small pictures as text, to stand in a page."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from itmfeat.report.pictures import below

SIDE = 192  # pixels of the longer side: sharp at 96 on a screen with two pixels to each
QUALITY = 60  # of WebP: about 5 KB a photograph


def thumbnail(root: Path, name: str) -> str | None:
    """A picture below `root` as base64 of a small WebP; None if it is not there or cannot be read.

    Upright by its EXIF tag, transparency on white. A name that leads out of `root` is not followed.
    """
    try:
        path = (root / below(root, name)).resolve()
        if not path.is_relative_to(root.resolve()):
            return None
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG need not be decoded whole
            small = ImageOps.exif_transpose(picture)
            small.thumbnail((SIDE, SIDE))
            return base64.b64encode(_webp(_opaque(small))).decode()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _webp(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY)
    return out.getvalue()
