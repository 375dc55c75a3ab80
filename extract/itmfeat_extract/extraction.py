"""From a dataset's name to its cache: the function behind `itmfeat extract`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from itmfeat.cache import SPLITS, open_cache
from itmfeat.cache.schema import DTYPES
from itmfeat.errors import UsageError, unknown
from itmfeat_extract import backbones
from itmfeat_extract.corpus import READERS, Corpus, SplitFractions, read
from itmfeat_extract.engines import Site
from itmfeat_extract.filling import Note, Progress
from itmfeat_extract.makers import Images, Texts
from itmfeat_extract.pipeline import (
    Settings,
    extract_images,
    extract_texts,
    silent,
    tokenized,
    write_corpus,
)
from itmfeat_extract.probe import CAPTIONS, IMAGES, estimate, spread
from itmfeat_extract.tokens import TokenPolicy

_NOTHING = np.empty(0, np.int32), np.empty(0, np.int64), 0

IMAGE_DEFAULT, TEXT_DEFAULT, NONE = "efficientnet-lite0", "minilm-l6", "none"


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
    eta_seconds: int | None  # an estimate, from a few items


def extract(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    image_backbone: str | None = None,
    text_backbone: str = TEXT_DEFAULT,
    *,
    tokens: str = "all",
    dtype: str = "float16",
    limit: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    engine: str = "local",
    fractions: SplitFractions | None = None,
    dry_run: bool = False,
    progress: Progress = lambda what, done, total: None,
    note: Note = silent,
) -> Path | Plan:
    """Extract a dataset into a cache folder and return the folder (or the plan of a dry run).

    `root` is the dataset's folder, `data/DATASET` by default; `cache` is `caches/DATASET` by default. What is
    already there is kept; what was interrupted is resumed. The backbone "none" leaves a side out; the image
    backbone None is `IMAGE_DEFAULT`. `dataset` may also be a cache folder, into which text is extracted.
    `engine`, `device` and `workers` say who works (`Site.of`), `precision` is that of the forward pass.
    """
    _check(limit, dtype)
    policy = TokenPolicy.parse(tokens)
    site = Site.of(engine, device, workers)
    settings = Settings(dtype, site.threads, site.launch)
    if site.launch.rank:  # the first copy speaks for all
        progress, note = (lambda what, done, total: None), silent
    if dataset not in READERS and (Path(dataset) / "dataset.h5").exists():
        if image_backbone not in (None, NONE) or any((root, cache, limit, fractions)):
            raise UsageError(
                f"{dataset} is a cache, from whose captions text is extracted into it: "
                "leave out --image-backbone, --root, --cache, --limit and the split options"
            )
        corpus, folder, images = _indexed(Path(dataset)), Path(dataset), NONE
    else:
        corpus = read(dataset, Path(root) if root else Path("data") / dataset, fractions, limit)
        folder = Path(cache) if cache else Path("caches") / (f"{dataset}-{limit}" if limit else dataset)
        images = image_backbone or IMAGE_DEFAULT
    if corpus.origin:
        note(corpus.origin)
    image = None if images == NONE else backbones.load_image(images, site.devices[0], precision)
    text = None if text_backbone == NONE else backbones.load_text(text_backbone, site.devices[0], precision)
    if dry_run:
        return _plan(corpus, folder, image, text, policy, dtype, site)
    digest = write_corpus(corpus, folder)
    if image:
        path = folder / "image" / f"{backbones.slug(images)}{policy.suffix}.h5"
        makes = site.engine("image", images, image, policy=policy, root=corpus.root, dtype=precision)
        extract_images(corpus, digest, path, image, policy, settings, progress, engine=makes, note=note)
    if text:
        path = folder / "text" / f"{backbones.slug(text_backbone)}.h5"
        makes = site.engine("text", text_backbone, text, dtype=precision)
        extract_texts(corpus, digest, path, text, settings, progress, engine=makes, note=note)
    return folder


def _check(limit: int | None, dtype: str) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, list(DTYPES))


def _indexed(folder: Path) -> Corpus:
    """What the index of a cache tells; its images need not be at hand."""
    index = open_cache(folder).index
    return Corpus(
        name=index.name,
        root=folder,
        image_ids=index.image_id.tolist(),
        image_files=index.image_file.tolist(),
        image_splits=[SPLITS[code] for code in index.image_split],
        captions=index.caption.tolist(),
        caption_ids=index.caption_id.tolist(),
        caption_image=index.caption_image,
    )


def _plan(
    corpus: Corpus,
    folder: Path,
    image: backbones.ImageBackbone | None,
    text: backbones.TextBackbone | None,
    policy: TokenPolicy,
    dtype: str,
    site: Site,
) -> Plan:
    """Sizes of what an extraction would write, and how long it would take."""
    width = np.dtype(DTYPES[dtype]).itemsize
    regions = len(corpus.image_ids) * policy.regions(image) if image else 0
    ids, lengths, _ = tokenized(text, corpus.captions) if text else _NOTHING
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return Plan(
        corpus.name,
        folder,
        len(corpus.image_ids),
        len(corpus.captions),
        regions * image.dim * width if image else 0,
        len(ids) * text.dim * width if text else 0,
        shutil.disk_usage(place).free,
        _seconds(corpus, image, text, policy, ids, lengths, site),
    )


def _seconds(
    corpus: Corpus,
    image: backbones.ImageBackbone | None,
    text: backbones.TextBackbone | None,
    policy: TokenPolicy,
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    site: Site,
) -> int | None:
    """An estimate from a few items, made here and on the first device alone; None without a sample."""
    found: list[float | None] = [0.0]
    on_cpu = site.devices[0] == "cpu" or (site.devices[0] == "auto" and not torch.cuda.is_available())
    share = 1 if on_cpu else len(site.devices)  # on the CPU a second process takes the cores of the first
    if image:
        files = corpus.image_files
        sample = [files[row] for row in spread(len(files), IMAGES)]
        maker = Images(image, policy, corpus.root)
        found.append(estimate(maker, sample, len(files), site.threads, on_cpu))
    if text:
        starts = np.cumsum(lengths) - lengths
        captions = [ids[starts[row] :][: lengths[row]] for row in spread(len(lengths), CAPTIONS)]
        found.append(estimate(Texts(text), captions, len(lengths), 1, on_cpu))
    known = [each for each in found if each is not None]
    return round(sum(known) / share / site.launch.world) if len(known) == len(found) else None
