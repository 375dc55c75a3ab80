"""What the pipeline asks of a frozen encoder.

Letters in shapes: B batch, R regions of an image, L tokens of a caption, D feature dim, P pooled dim,
H and W height and width in pixels. Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from itmfeat_extract.backbones.placement import Placement

# What must be equal for two sets of features to be the same; goes into a cache's attributes as JSON.
Fingerprint = dict[str, "str | int | float | list[int] | list[float] | list[str]"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of features on the backbone's device, in float32 or float16 (numpy knows no bfloat16).

    `vectors` is (B, R, D) for images and (B, L, D) for captions; there the vectors beyond a caption's
    length are meaningless. `pooled` is (B, P), or None where the backbone has no pooled vector. Regions of a
    detector have `boxes` (B, R, 4), x1, y1, x2, y2 as parts of width and height, `scores` (B, R) and `labels`
    (B, R), the number of the best class.
    """

    vectors: Tensor
    pooled: Tensor | None
    boxes: Tensor | None = None
    scores: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Tokenized:
    """Token ids of each caption with the special tokens, and how many captions were cut."""

    ids: list[list[int]]
    truncated: int


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of a sentence, for a word of warning."""

    tokens: int  # with the special ones, before anything is cut
    words: int
    unknown: list[str]  # words that become a token for the unknown, or are spelt out letter by letter


class ImageBackbone(Protocol):
    """A frozen image encoder with a fixed number of regions an image."""

    @property
    def name(self) -> str:
        """The name it was asked by, without a folder's path."""

    @property
    def dim(self) -> int:
        """D, the size of a region's vector."""

    @property
    def regions(self) -> int:
        """R, the same for every image."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns where the regions lie on a grid (row by row), else None."""

    @property
    def pooled_dim(self) -> int:
        """P, or 0 where there is no pooled vector."""

    @property
    def boxed(self) -> bool:
        """Whether regions carry boxes, scores and labels."""

    @property
    def placement(self) -> Placement:
        """The device and precision of the forward pass."""

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Pixels (H, W, 3), for most backbones equal in size for every image. Thread-safe; uses no torch."""

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (B, H, W, 3) in uint8, on any device -> vectors (B, R, D), pooled (B, P)."""

    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing and precision: what decides the values of the features."""


class TextBackbone(Protocol):
    """A frozen text encoder with one vector a token."""

    @property
    def name(self) -> str:
        """The name it was asked by, without a folder's path."""

    @property
    def dim(self) -> int:
        """D, the size of a token's vector."""

    @property
    def pooled_dim(self) -> int:
        """P, or 0 where there is no pooled vector."""

    @property
    def max_length(self) -> int:
        """The longest caption in tokens, special tokens included."""

    @property
    def pad_id(self) -> int:
        """The id to pad a batch of captions with."""

    @property
    def pad_to(self) -> int | None:
        """The length that the model sees whatever comes (`encode` pads up to it), or None."""

    def tokenize(self, captions: list[str]) -> Tokenized:
        """Ids with special tokens, at most `max_length` a caption."""

    def read(self, sentence: str) -> Reading:
        """How many tokens and words a sentence has, and which words the tokenizer does not know."""

    def encode(self, ids: Tensor, lengths: Tensor) -> Encoded:
        """Ids (B, L) in int64, padded with `pad_id`, lengths (B,) -> vectors (B, L, D), pooled (B, P)."""

    def fingerprint(self) -> Fingerprint:
        """Weights, tokenizer and precision: what decides the values of the features."""
