"""Principal components of a feature file's vectors, fitted on the training split alone."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itmfeat.cache import schema
from itmfeat.cache.index import SPLITS, DatasetIndex
from itmfeat.cache.reader import FeatureFile
from itmfeat.cache.rewrite import Ints, rows
from itmfeat.errors import DataError, UsageError

Floats = NDArray[np.float32]

SAMPLE_BYTES = 2**31  # of the vectors that are fitted, in float64: 131,072 of length 2048
_BLOCK = 8192  # vectors read at once


@dataclass(frozen=True)
class Projection:
    """z = (x - mean) @ components.T, from D to d dimensions."""

    mean: Floats  # (D,)
    components: Floats  # (d, D), orthonormal rows, the one of the largest variance first

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        """Vectors (V, D) of any float type -> (V, d) in single precision."""
        wide = torch.from_numpy(np.array(vectors)).float()  # a copy: those of a file cannot be written
        return ((wide - torch.from_numpy(self.mean)) @ torch.from_numpy(self.components).T).numpy()

    @property
    def digest(self) -> str:
        """SHA-256 of the mean's and the components' bytes."""
        return hashlib.sha256(self.mean.tobytes() + self.components.tobytes()).hexdigest()


def projection_of(file: FeatureFile) -> Projection | None:
    """The projection that made the vectors of a file, for vectors that are new; None if it has none."""
    found = schema.projection(file.path)
    return Projection(**found) if found else None


def fit(file: FeatureFile, index: DatasetIndex, dim: int) -> tuple[Projection, dict[str, Any]]:
    """The first `dim` components of the training split's vectors, and what is to be known of the fit.

    All vectors of the split count, or as many drawn ones (with a fixed seed) as `SAMPLE_BYTES` hold.
    """
    import sklearn
    from sklearn.decomposition import PCA

    kind = str(file.attributes["kind"])
    images = index.image_split == SPLITS.index("train")
    train = images if kind == "image" else images[index.caption_image]
    every = np.flatnonzero(np.repeat(train, np.diff(file.offsets)))
    # RandomState, because its stream is frozen: the same vectors under every NumPy.
    drawn = np.sort(np.random.RandomState(0).permutation(every)[: SAMPLE_BYTES // (8 * file.dim)])
    if len(drawn) <= dim:
        raise UsageError(
            f"--pca {dim} needs more than {dim} {kind} vectors in the training split of {file.path}, "
            f"which has {len(every)}; choose fewer dimensions"
        )
    found = PCA(dim, svd_solver="covariance_eigh", copy=False)
    with np.errstate(invalid="ignore"):
        found.fit(_wide(file, drawn))
    variance = float(found.explained_variance_ratio_.sum())
    if not np.isfinite(variance):
        raise DataError(f"{file.path}: all vectors of the training split are equal; extract it again")
    # In row order, as when it is read again: products round alike only for one order in memory.
    made = Projection(found.mean_.astype(np.float32), found.components_.astype(np.float32, order="C"))
    return made, {
        "dim": dim,
        "variance": variance,
        "split": "train",
        "vectors": len(drawn),
        "of": len(every),
        "digest": made.digest,
        "scikit-learn": sklearn.__version__,
    }


def _wide(file: FeatureFile, chosen: Ints) -> NDArray[np.float64]:
    """These vectors (V, D) in double precision, read in blocks."""
    wide = np.empty((len(chosen), file.dim))
    for start in range(0, len(chosen), _BLOCK):
        block = chosen[start : start + _BLOCK]
        found = torch.from_numpy(rows(file, "features", block)).double()
        if "scales" in file.extents:
            found *= torch.from_numpy(rows(file, "scales", block)).unsqueeze(1)
        wide[start : start + _BLOCK] = found.numpy()
    return wide
