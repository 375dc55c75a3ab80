"""From a dataset's name to its cache: the function behind `itmfeat extract`."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itmfeat.cache import SPLITS, FeatureFile, FeatureSpec, open_cache
from itmfeat.cache.schema import DTYPES
from itmfeat.errors import DataError, Note, UsageError, silent, unknown
from itmfeat_extract import backbones
from itmfeat_extract.backbones.placement import no_compiler
from itmfeat_extract.corpus import READERS, Corpus, SplitFractions, read
from itmfeat_extract.duplicates import shared_captions, shared_images
from itmfeat_extract.engines import Site
from itmfeat_extract.filling import Progress
from itmfeat_extract.makers import Images, Texts
from itmfeat_extract.pictures import UNREADABLE, unreadable
from itmfeat_extract.pipeline import (
    Settings,
    extract_images,
    extract_texts,
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
    shared_images: dict[str, int]  # splits -> how many equal images stand in both
    shared_captions: dict[str, int]
    eta_seconds: int | None  # an estimate, from a few items


def extract(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    image_backbone: str | None = None,
    text_backbone: str = TEXT_DEFAULT,
    *,
    tokens: str = "all",
    image_size: int | None = None,
    resize: str | None = None,
    layers: str | None = None,
    text_layers: str | None = None,
    dtype: str = "float16",
    limit: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
    engine: str = "local",
    fractions: SplitFractions | None = None,
    name: str | None = None,
    on_error: str = "stop",
    dry_run: bool = False,
    progress: Progress = lambda what, done, total: None,
    note: Note = silent,
) -> Path | Plan:
    """Extract a dataset into a cache folder and return the folder (or the plan of a dry run).

    `root` is the dataset's folder, `data/DATASET` by default; `cache` is `caches/DATASET` by default. What is
    already there is kept; what was interrupted is resumed. The backbone "none" leaves a side out; the image
    backbone None is `IMAGE_DEFAULT`. `dataset` may also be a cache folder, into which text is extracted. Each
    choice of `tokens` (`TokenPolicy`), `image_size`, `resize` and layers (`View`) makes a file of its own.
    `name` is what a dataset of a general layout is called. An image that cannot be read ends the extraction,
    or with `on_error` "skip" gets no vectors: then all are decoded once beforehand. `engine`, `device` and
    `workers` say who works (`Site.of`), `precision` and `compiled` how; Ray's stdout is stderr.
    """
    _check(dtype, limit, on_error)
    policy, chosen = TokenPolicy.parse(tokens), backbones.Layers.parse(text_layers)
    view = backbones.View(image_size, resize, backbones.Layers.parse(layers))
    way = {"dtype": precision, "compiled": compiled and not dry_run}  # a probe is over before it pays
    seen, told = {**way, "view": view}, {**way, "layers": chosen}
    site = Site.of(engine, device, workers)
    settings = Settings(dtype, site.threads, site.launch)
    if site.launch.rank:  # the first copy speaks for all
        progress, note = (lambda what, done, total: None), silent
    corpus, folder, images = _source(dataset, root, cache, image_backbone, limit, fractions, name)
    if corpus.origin:
        note(corpus.origin)
    image, text = _load(images, seen, text_backbone, told, site.devices[0], note)
    shared = _shared(corpus, folder, images, dry_run, settings.workers, note)
    if dry_run:
        return _plan(corpus, folder, image, text, policy, dtype, *shared, site)
    with site.connection():
        digest = write_corpus(corpus, folder)
        made = _Made(corpus, folder, digest, site, settings, progress, note)
        if image:
            stem = f"{backbones.slug(images)}{view.suffix}{policy.suffix}"
            made.images(stem, images, image, policy, on_error == "skip", seen)
        if text:
            made.texts(f"{backbones.slug(text_backbone)}{chosen.suffix}", text_backbone, text, told)
    return folder


@dataclass(frozen=True)
class _Made:
    """What both sides of an extraction share."""

    corpus: Corpus
    folder: Path
    digest: str
    site: Site
    settings: Settings
    progress: Progress
    note: Note

    def images(
        self,
        stem: str,
        name: str,
        backbone: backbones.ImageBackbone,
        policy: TokenPolicy,
        skip: bool,
        options: dict[str, Any],
    ) -> None:
        """The image features in `stem`.h5; `options` are those that the backbone was loaded with."""
        path = self.folder / "image" / f"{stem}.h5"
        missing: dict[int, str] = {}
        if skip and not path.exists():
            missing = _missing(self.corpus, self.folder, self.digest, self.settings, self.progress, self.note)
        engine = self.site.engine("image", name, backbone, policy=policy, corpus=self.corpus, **options)
        extract_images(
            self.corpus,
            self.digest,
            path,
            backbone,
            policy,
            self.settings,
            self.progress,
            missing,
            engine=engine,
            note=self.note,
        )

    def texts(self, stem: str, name: str, backbone: backbones.TextBackbone, options: dict[str, Any]) -> None:
        """The text features; arguments as for images."""
        path = self.folder / "text" / f"{stem}.h5"
        engine = self.site.engine("text", name, backbone, **options)
        extract_texts(
            self.corpus,
            self.digest,
            path,
            backbone,
            self.settings,
            self.progress,
            engine=engine,
            note=self.note,
        )
        _tell_of_cuts(path, backbone.max_length, self.note)


def _load(
    image: str, seen: dict[str, Any], text: str, told: dict[str, Any], device: str, note: Note
) -> tuple[backbones.ImageBackbone | None, backbones.TextBackbone | None]:
    """Both backbones by name, with options; None for one that is left out."""
    found = _load_image(image, device, seen), _load_text(text, device, told)
    if seen["compiled"]:
        _tell_of_compiling([backbone for backbone in found if backbone], note)
    return found


def _load_image(name: str, device: str, options: dict[str, Any]) -> backbones.ImageBackbone | None:
    if name != NONE:
        return backbones.load_image(name, device, **options)
    if options["view"] != backbones.DEFAULT_VIEW:
        raise UsageError("no images are extracted here: leave out --image-size, --resize and --layers")
    return None


def _load_text(name: str, device: str, options: dict[str, Any]) -> backbones.TextBackbone | None:
    if name != NONE:
        return backbones.load_text(name, device, **options)
    if not options["layers"].last:
        raise UsageError("no text is extracted here: leave out --text-layers")
    return None


def _tell_of_compiling(
    loaded: Sequence[backbones.ImageBackbone | backbones.TextBackbone], note: Note
) -> None:
    """Whose forward pass is not compiled, though it was asked for."""
    if loaded and (reason := no_compiler(loaded[0].placement.device)):
        note(f"{reason}, so nothing is compiled: leave --compile out, or install one")
        return
    for backbone in loaded:
        if not backbone.placement.compiled:
            note(f"{backbone.name} is fused by hand and runs as it is: --compile changes nothing for it")


def _tell_of_cuts(path: Path, longest: int, note: Note) -> None:
    """Captions that were longer than the model reads."""
    file = FeatureFile(path)
    if cut := file.fingerprint.get("truncated"):
        note(f"{cut} of {len(file)} captions were cut to the {longest} tokens that {path.stem} reads")


def _check(dtype: str, limit: int | None, on_error: str) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, list(DTYPES))
    if on_error not in ("stop", "skip"):
        raise UsageError(f"--on-error must be stop or skip, not {on_error!r}")


def _source(
    dataset: str,
    root: str | Path | None,
    cache: str | Path | None,
    image_backbone: str | None,
    limit: int | None,
    fractions: SplitFractions | None,
    name: str | None,
) -> tuple[Corpus, Path, str]:
    """The corpus, the cache folder and the image backbone; of a cache the captions alone are there."""
    if dataset in READERS or not (Path(dataset) / "dataset.h5").exists():
        corpus = read(dataset, Path(root or f"data/{name or dataset}"), fractions, limit, name)
        folder = Path(cache or f"caches/{corpus.name}" + (f"-{limit}" if limit else ""))
        return corpus, folder, image_backbone or IMAGE_DEFAULT
    if image_backbone not in (None, NONE) or any((root, cache, limit, fractions, name)):
        raise UsageError(
            f"{dataset} is a cache, from whose captions text is extracted into it: "
            "leave out --image-backbone, --root, --cache, --limit, --name and the split options"
        )
    return _indexed(Path(dataset)), Path(dataset), NONE


def _shared(
    corpus: Corpus, folder: Path, images: str, dry_run: bool, workers: int, note: Note
) -> tuple[dict[str, int], dict[str, int]]:
    """Images and captions that stand in two splits, said before a cache is made: splits -> how many."""
    if not dry_run and (folder / "dataset.h5").exists():
        return {}, {}
    found = [] if images == NONE else [shared_images(corpus, workers)]
    found.append(shared_captions(corpus))
    for shared in found:
        if shared.counts:
            note(str(shared))
    return (found[0].counts if images != NONE else {}), found[-1].counts


def _missing(
    corpus: Corpus, folder: Path, digest: str, settings: Settings, progress: Progress, note: Note
) -> dict[int, str]:
    """Images that cannot be read, row -> why; said, and named in a file."""
    missing = unreadable(corpus, folder, digest, settings.workers, progress)
    if len(missing) == len(corpus.image_files):
        raise DataError(f"none of the {len(missing)} images can be read: {next(iter(missing.values()))}")
    if missing:
        captions = int(np.isin(corpus.caption_image, list(missing)).sum())
        note(
            f"{len(missing)} of {len(corpus.image_files)} images cannot be read and stay empty in the cache: "
            f"later steps leave them and their {captions} captions out; {folder / UNREADABLE} names all, "
            f"the first: {next(iter(missing.values()))}"
        )
    return missing


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
    shared_images: dict[str, int],
    shared_captions: dict[str, int],
    site: Site,
) -> Plan:
    """Sizes of what an extraction would write, and how long it would take."""
    ids, lengths, _ = tokenized(text, corpus.captions) if text else _NOTHING
    regions = np.full(len(corpus.image_ids), policy.regions(image) if image else 0)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return Plan(
        corpus.name,
        folder,
        len(corpus.image_ids),
        len(corpus.captions),
        _bytes(image, regions, dtype, policy.boxed(image)) if image else 0,
        _bytes(text, lengths, dtype) if text else 0,
        shutil.disk_usage(place).free,
        shared_images,
        shared_captions,
        _seconds(corpus, image, text, policy, ids, lengths, site),
    )


def _bytes(
    backbone: backbones.ImageBackbone | backbones.TextBackbone,
    lengths: NDArray[np.int64],
    dtype: str,
    boxed: bool = False,
) -> int:
    """What a file will take: vectors and all that stands beside them."""
    spec = FeatureSpec(
        kind="image or text",
        backbone=backbone.name,
        dataset="of no matter",
        lengths=lengths,
        dim=backbone.dim,
        dtype=dtype,
        pooled_dim=backbone.pooled_dim,
        boxed=boxed,
        labelled=boxed,
    )
    return spec.nbytes


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
        maker = Images(image, policy, corpus.root, corpus.opener)
        found.append(estimate(maker, sample, len(files), site.threads, on_cpu))
    if text:
        starts = np.cumsum(lengths) - lengths
        captions = [ids[starts[row] :][: lengths[row]] for row in spread(len(lengths), CAPTIONS)]
        found.append(estimate(Texts(text), captions, len(lengths), 1, on_cpu))
    known = [each for each in found if each is not None]
    return round(sum(known) / share / site.launch.world) if len(known) == len(found) else None
