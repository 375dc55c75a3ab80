"""From a dataset's name to its cache: the function behind `itmfeat extract`."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itmfeat.cache.schema import DTYPES
from itmfeat.errors import UsageError, unknown
from itmfeat_extract import backbones
from itmfeat_extract.corpus import Corpus, SplitFractions, read
from itmfeat_extract.pipeline import (
    Progress,
    Settings,
    default_workers,
    extract_images,
    extract_texts,
    write_corpus,
)
from itmfeat_extract.tokens import TokenPolicy

IMAGE_DEFAULT, TEXT_DEFAULT = "efficientnet-lite0", "minilm-l6"


@dataclass(frozen=True)
class Plan:
    """What an extraction will do, for `--dry-run`."""

    dataset: str
    cache: Path
    images: int
    captions: int
    image_bytes: int
    text_bytes: int
    free_bytes: int


def extract(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    image_backbone: str = IMAGE_DEFAULT,
    text_backbone: str = TEXT_DEFAULT,
    *,
    tokens: str = "all",
    dtype: str = "float16",
    limit: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    fractions: SplitFractions | None = None,
    dry_run: bool = False,
    progress: Progress = lambda what, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Path | Plan:
    """Extract a dataset into a cache folder and return the folder (or the plan of a dry run).

    `root` is the dataset's folder, `data/DATASET` by default; `cache` is `caches/DATASET` by default. What is
    already there is kept; what was interrupted is resumed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, list(DTYPES))
    policy = TokenPolicy.parse(tokens)
    settings = Settings(dtype, workers or default_workers())
    corpus = read(dataset, Path(root) if root else Path("data") / dataset, fractions, limit)
    if corpus.origin:
        note(corpus.origin)
    folder = Path(cache) if cache else Path("caches") / (f"{dataset}-{limit}" if limit else dataset)
    image = backbones.load_image(image_backbone, device)
    text = backbones.load_text(text_backbone, device)
    if dry_run:
        return _plan(corpus, folder, image, text, policy, dtype)
    digest = write_corpus(corpus, folder)
    image_path = folder / "image" / f"{backbones.slug(image_backbone)}{policy.suffix}.h5"
    text_path = folder / "text" / f"{backbones.slug(text_backbone)}.h5"
    extract_images(corpus, digest, image_path, image, policy, settings, progress)
    extract_texts(corpus, digest, text_path, text, settings, progress)
    return folder


def _plan(
    corpus: Corpus,
    folder: Path,
    image: backbones.ImageBackbone,
    text: backbones.TextBackbone,
    policy: TokenPolicy,
    dtype: str,
) -> Plan:
    """Sizes of what an extraction would write."""
    width = np.dtype(DTYPES[dtype]).itemsize
    regions = len(corpus.image_ids) * policy.regions(image)
    tokens = sum(len(ids) for ids in text.tokenize(corpus.captions).ids)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return Plan(
        corpus.name,
        folder,
        len(corpus.image_ids),
        len(corpus.captions),
        regions * image.dim * width,
        tokens * text.dim * width,
        shutil.disk_usage(place).free,
    )
