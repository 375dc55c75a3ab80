"""A small synthetic cache with structure to learn, for everything after extraction."""

from pathlib import Path

import numpy as np
import pytest

from itmfeat.cache import FeatureSpec, FeatureWriter, open_cache, write_index

IMAGES, PER_IMAGE, REGIONS, IMAGE_DIM, TEXT_DIM = 60, 5, 4, 12, 8


def write_features(path: Path, spec: FeatureSpec, vectors: np.ndarray) -> None:
    """Fill a feature file from one array (vectors, D)."""
    with FeatureWriter(path, spec) as writer:
        for index in writer.pending:
            items = writer.items(index)
            first, last = writer.offsets[items.start], writer.offsets[items.stop]
            writer.write(index, features=vectors[first:last])
        writer.finish()


def vectors(cache: Path, kind: str) -> np.ndarray:
    """The only vector of each item (items, D), straight from the bytes."""
    file = open_cache(cache).open(kind)
    extent = file.extents["features"]
    return np.fromfile(file.path, extent.dtype, np.prod(extent.shape), offset=extent.offset).reshape(
        extent.shape
    )


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training, 10 validation and 10 test images; captions are noisy views of the image's code."""
    folder = tmp_path_factory.mktemp("caches") / "toy"
    rng = np.random.default_rng(0)
    captions = IMAGES * PER_IMAGE
    caption_image = np.arange(captions) // PER_IMAGE
    digest = write_index(
        folder / "dataset.h5",
        "toy",
        {
            "image_id": [str(i) for i in range(IMAGES)],
            "image_file": [f"{i}.png" for i in range(IMAGES)],
            "caption": [f"caption {i}" for i in range(captions)],
        },
        {
            "image_split": np.repeat([0, 1, 2], [40, 10, 10]).astype(np.uint8),
            "caption_id": np.arange(captions),
            "caption_image": caption_image,
        },
    )
    code = rng.standard_normal((IMAGES, 6))
    regions = np.repeat(code, REGIONS, 0) @ rng.standard_normal((6, IMAGE_DIM))
    regions += rng.standard_normal(regions.shape)
    lengths = rng.integers(2, 6, captions)
    tokens = np.repeat(code[caption_image], lengths, 0) @ rng.standard_normal((6, TEXT_DIM))
    tokens += rng.standard_normal(tokens.shape)
    image = FeatureSpec("image", "grid", digest, np.full(IMAGES, REGIONS), IMAGE_DIM)
    write_features(folder / "image" / "grid.h5", image, regions)
    text = FeatureSpec("text", "words", digest, lengths, TEXT_DIM)
    write_features(folder / "text" / "words.h5", text, tokens)
    return folder


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
