"""Groups of images that look alike, for hard noise."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.errors import UsageError
from itmfeat.pairs import Ints

Floats = NDArray[np.floating[Any]]


def clusters(features: Floats, count: int | None = None, seed: int = 0, rounds: int = 20) -> Ints:
    """Spherical k-means (Dhillon & Modha, 2001) of feature vectors (I, D): the cluster of each, (I,).

    Vectors are centred and normalised first, as those of frozen backbones share a large mean. `count` is
    round(sqrt(I)) if not given. A centre that loses all its vectors takes the worst placed vector.
    """
    count = round(len(features) ** 0.5) if count is None else count
    if not 1 <= count <= len(features):
        raise UsageError(f"the number of clusters must lie in 1..{len(features)}, not {count}")
    vectors = features.astype(np.float32)
    vectors -= vectors.mean(0)
    _normalise(vectors)
    centres = vectors[np.random.RandomState(seed).permutation(len(vectors))[:count]]
    labels = np.full(len(vectors), -1, np.int64)
    for _ in range(rounds):
        nearest, closeness = _nearest(vectors, centres)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = np.zeros_like(centres)
        np.add.at(centres, labels, vectors)
        empty = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
        centres[empty] = vectors[np.argsort(closeness, kind="stable")[: len(empty)]]
        _normalise(centres)
    return labels


def _nearest(vectors: Floats, centres: Floats, step: int = 8192) -> tuple[Ints, Floats]:
    """The nearest centre (I,) of each vector and its cosine (I,), so many vectors at a time."""
    labels, closeness = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), step):
        cosines = vectors[start : start + step] @ centres.T  # (step, N)
        labels[start : start + step] = cosines.argmax(1)
        closeness[start : start + step] = cosines.max(1)
    return labels, closeness


def _normalise(vectors: Floats) -> None:
    """Scale the rows of (N, D) to length one, in place; a zero row stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    vectors /= np.where(lengths > 0, lengths, 1)
