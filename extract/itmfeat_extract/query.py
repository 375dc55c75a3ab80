"""A picture or a sentence that is in no cache, as features like those that are in one: for a search.

Its features come from the same backbone, weights, preprocessing, layers, token policy and projection as those
of a feature file. They stay in single precision: what rounding to the file's dtype would do is not done.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from itmfeat.cache import FeatureFile
from itmfeat.cache.pca import projection_of
from itmfeat.cache.quantization import STEPS
from itmfeat.errors import DataError
from itmfeat_extract import backbones
from itmfeat_extract.backbones import Fingerprint, Reading, TextBackbone
from itmfeat_extract.backbones.placement import place
from itmfeat_extract.backbones.preprocess import to_rgb
from itmfeat_extract.corpus.base import Opener
from itmfeat_extract.makers import Images, Texts
from itmfeat_extract.pictures import HINT, decode_named
from itmfeat_extract.tokens import TokenPolicy

Floats = NDArray[np.float32]
T = TypeVar("T")

# What may differ: names, and the precision of the forward pass, which a CPU cannot always follow.
_FREE = {"backbone", "source", "licence", "dtype"}


@dataclass(frozen=True)
class Sentence:
    """A sentence as features, and how its tokenizer read it."""

    vectors: Floats  # (L, D)
    reading: Reading
    longest: int  # tokens that the model reads at most; what is beyond was cut


def encode_picture(
    file: FeatureFile, picture: Path, device: str = "auto", backbone: str | None = None
) -> Floats:
    """A picture as the vectors (R, D) that it would have in an image file.

    `backbone` names the encoder where the name in the file does not lead to it, as that of a folder. A
    DataError if there is none, if it is another one, or if the picture cannot be read.
    """
    name, precision = _origin(file, device, backbone)
    loaded = backbones.load_image(name, device, precision, backbones.View.named(_stem(file)))
    _check(file, name, loaded.fingerprint())
    pixels = _decoded(picture.parent, str(picture), _open, loaded.preprocess)
    maker = Images(loaded, TokenPolicy.parse(str(file.attributes["tokens"])), picture.parent)
    return _projected(file, maker.make([pixels])["features"].float().cpu().numpy())


def encode_sentence(
    file: FeatureFile, sentence: str, device: str = "auto", backbone: str | None = None
) -> Sentence:
    """A sentence as the vectors (L, D) that it would have in a text file; the rest as for pictures."""
    name, precision = _origin(file, device, backbone)
    loaded: TextBackbone = backbones.load_text(name, device, precision, backbones.Layers.named(_stem(file)))
    _check(file, name, loaded.fingerprint())
    ids = np.array(loaded.tokenize([sentence]).ids[0], np.int32)
    vectors = Texts(loaded).make([ids])["features"]
    return Sentence(_projected(file, vectors), loaded.read(sentence), loaded.max_length)


def thumbnail(root: Path, name: str, edge: int) -> bytes:
    """A JPEG of at most `edge` pixels a side, of a picture below `root`; a DataError if it cannot be read."""

    def shrink(image: Image.Image) -> bytes:
        image.draft("RGB", (2 * edge, 2 * edge))  # JPEG alone: fewer pixels are computed
        small = to_rgb(image)
        small.thumbnail((edge, edge))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=80)
        return written.getvalue()

    return _decoded(root, name, None, shrink)


def _decoded(root: Path, name: str, opener: Opener | None, use: Callable[[Image.Image], T]) -> T:
    """As `decode_named`, whose advice is for a dataset."""
    try:
        return decode_named(root, name, opener, use)
    except DataError as error:
        raise DataError(str(error).removesuffix(HINT)) from error


def _open(path: str) -> BinaryIO:
    """A picture that belongs to no dataset, wherever it is."""
    return Path(path).open("rb")


def _stem(file: FeatureFile) -> str:
    """The name under which the features were extracted, which tells size, resize and layers."""
    steps = file.fingerprint.get(STEPS)
    return str(steps[0]["source"]) if steps else file.path.stem


def _origin(file: FeatureFile, device: str, backbone: str | None) -> tuple[str, str]:
    """The name of a file's backbone, and the precision of its forward pass where `device` has it."""
    made = file.fingerprint
    if made.get("weights", "unknown") == "unknown":
        raise DataError(
            f"the {file.attributes['kind']} features {file.path.stem} were imported: what made them is not "
            "known here, so no new query can be turned into such features"
        )
    on_cpu = place(device, None).device.type == "cpu"
    precision = str(made.get("dtype", "float32"))
    name = backbone or str(made.get("backbone", file.path.stem))
    return name, "float32" if on_cpu and precision == "float16" else precision


def _check(file: FeatureFile, name: str, found: Fingerprint) -> None:
    """A DataError unless a loaded backbone is the one that made a file."""
    made: dict[str, Any] = file.fingerprint
    for key, value in found.items():
        if key in made and key not in _FREE and made[key] != value:
            raise DataError(
                f"{file.path.stem} was made with another {key} than {name} has here "
                f"({str(made[key])[:12]}, not {str(value)[:12]}): install what made it, or say with "
                "--backbone hf:FOLDER where that lies"
            )


def _projected(file: FeatureFile, vectors: Floats) -> Floats:
    projection = projection_of(file)
    return vectors if projection is None else projection(vectors)
