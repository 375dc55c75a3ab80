"""New queries against a run: a sentence finds images of a split, a picture finds captions.

A query goes the way of the split's items: through the frozen backbone that made the cache, then through the
run's heads. The extractor is imported when a query comes: nothing else here needs its backbones.
"""

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmfeat import retrieval
from itmfeat.api import opened
from itmfeat.cache import FeatureFile
from itmfeat.config import RunConfig
from itmfeat.errors import DataError, Note, UsageError, silent
from itmfeat.features import Features
from itmfeat.loader import Side, whole
from itmfeat.pairs import Pairs
from itmfeat.report.hits import EDGE, page
from itmfeat.report.output import check_folder, put
from itmfeat.report.pictures import below
from itmfeat.runs import Run
from itmfeat.stack import EMBED_BATCH, embed, joined, load_heads
from itmfeat.training import choose_device

PICTURES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".ppm",
    ".heic",
)
"""Endings that make a query the name of a picture, also where there is no such file."""

_NO_ROWS = np.empty(0, np.int64)


def search(
    run: str | Path,
    query: str | Path,
    *,
    top: int = 10,
    split: str = "test",
    cache: str | Path | None = None,
    backbone: str | None = None,
    device: str = "auto",
    note: Note = silent,
) -> dict[str, Any]:
    """The best hits of a split for a query that need not be in the cache, as plain data.

    A sentence finds images; a picture (a `Path`, or text that names a file) finds captions. Scores are
    cosines between the embeddings of the run, the mean of both where it has two nets. `cache` says where the
    run's cache lies now, `backbone` where the encoder of the query lies, if its name does not lead there
    (`hf:FOLDER`). `note` is told of words that the tokenizer does not know and of what was cut off. A
    DataError if the run, its cache, the encoder or the picture does not fit; a UsageError if there is nothing
    to search for.
    """
    if top < 1:
        raise UsageError(f"--top must be at least 1, not {top}")
    picture = _picture(query)
    sentence = "" if picture else _sentence(str(query))
    found, config, features = opened(run, cache)
    pairs = features.pairs(split, config.data.captions_per_image)
    if features.missing:
        note(features.missing)
    where = choose_device(device)
    told: dict[str, Any] = {}
    if picture:
        vectors = _picture_features(features.image, picture, device, backbone)
    else:
        vectors, told = _sentence_features(features.text, sentence, device, backbone, note)
    item, gallery = _embeddings(found, config, features, pairs, vectors, bool(picture), where)
    scores, ids = retrieval.search(item, gallery, top)
    ranked = enumerate(zip(scores[0].tolist(), ids[0].tolist(), strict=True), start=1)
    hit = _caption if picture else _image
    return {
        "query": str(query),
        "finds": "captions" if picture else "images",
        "run": str(run),
        "dataset": features.cache.index.name,
        "split": split,
        "searched": len(gallery),
        **told,
        "hits": [{"rank": rank, "score": score} | hit(features, pairs, at) for rank, (score, at) in ranked],
    }


def write_page(found: Mapping[str, Any], path: Path, images: Path | None = None, note: Note = silent) -> Path:
    """What `search` found as one HTML file with thumbnails; nothing in it is loaded from elsewhere.

    `images` is the folder from which the dataset was extracted, by default `data/DATASET`. Pictures that are
    not there are named, not shown.
    """
    root = images or Path("data") / str(found["dataset"])
    if images and not root.is_dir():
        raise DataError(
            f"there is no folder {root}: --images names that from which the dataset was extracted"
        )
    check_folder(path)
    put(path, page(found, _thumbnails(found, root, note)))
    return path


def _picture(query: str | Path) -> Path | None:
    """The file that a query names; None if it is a sentence."""
    path = Path(query)
    named = (
        isinstance(query, Path)
        or path.suffix.lower() in PICTURES
        or str(query).startswith(("/", "./", "../"))
    )
    if os.path.isfile(query):  # not Path.is_file, which raises for sentences longer than a file name
        return path
    if named:
        raise DataError(
            f"there is no picture {str(query)!r}: a query is a sentence, or the path of a picture"
        )
    return None


def _sentence(query: str) -> str:
    """A sentence without line breaks; a UsageError if there is nothing in it, or what no sentence has."""
    sentence = " ".join(query.split())
    if odd := sorted({letter for letter in sentence if unicodedata.category(letter) in ("Cc", "Cs")}):
        codes = ", ".join(f"U+{ord(letter):04X}" for letter in odd)
        raise UsageError(f"the sentence holds control characters ({codes}): leave them out")
    if not sentence:
        raise UsageError("the query is empty: give a sentence, or the path of a picture")
    return sentence


def _picture_features(file: FeatureFile, picture: Path, device: str, backbone: str | None) -> Tensor:
    """Vectors (R, D) of a picture."""
    from itmfeat_extract.query import encode_picture

    return torch.from_numpy(encode_picture(file, picture, device, backbone))


def _sentence_features(
    file: FeatureFile, sentence: str, device: str, backbone: str | None, note: Note
) -> tuple[Tensor, dict[str, Any]]:
    """Vectors (L, D) of a sentence, and what is to be known of how it was read."""
    from itmfeat_extract.query import encode_sentence

    encoded = encode_sentence(file, sentence, device, backbone)
    reading, name = encoded.reading, file.path.stem
    if not reading.words:
        raise UsageError(f"the tokenizer of {name} finds no word in the sentence: write it in other letters")
    if reading.tokens > encoded.longest:
        note(f"the sentence has {reading.tokens} tokens, of which {name} reads the first {encoded.longest}")
    if reading.unknown:
        listed = ", ".join(repr(word) for word in reading.unknown[:10])
        more = f" and {len(reading.unknown) - 10} more" if len(reading.unknown) > 10 else ""
        rest = "it goes by the other words"
        if len(reading.unknown) == reading.words:
            rest = "it knows no other word of the sentence, so the hits are arbitrary"
        note(f"the tokenizer of {name} does not know {listed}{more}; {rest}")
    read = min(reading.tokens, encoded.longest)
    told = {"tokens": reading.tokens, "tokens_read": read, "unknown_words": reading.unknown}
    return torch.from_numpy(encoded.vectors), told


def _embeddings(
    run: Run,
    config: RunConfig,
    features: Features,
    pairs: Pairs,
    vectors: Tensor,
    is_image: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Embeddings of the query's vectors (V, D), as (1, E), and of the other side of the split, (G, E)."""
    image_head, text_head = load_heads(config.head, run.read_tensors("head.safetensors"), device)
    images, captions = (_NO_ROWS, pairs.captions) if is_image else (pairs.images, _NO_ROWS)
    image, text = features.sources(config.head, images, captions, device)
    query = Side(vectors[None, None], torch.tensor([[len(vectors)]]))
    ways = (image_head, text_head, text, captions) if is_image else (text_head, image_head, image, images)
    asked, head, source, rows = ways
    gallery = embed(head, whole(source, rows, EMBED_BATCH), device)
    return joined(embed(asked, [query], device)), joined(gallery)


def _image(features: Features, pairs: Pairs, at: int) -> dict[str, Any]:
    """Image `at` of a split, with its captions."""
    index = features.cache.index
    captions = pairs.captions[pairs.caption_image == at]
    return _file(features, int(pairs.images[at])) | {
        "captions": [index.caption[int(row)] for row in captions]
    }


def _caption(features: Features, pairs: Pairs, at: int) -> dict[str, Any]:
    """Caption `at` of a split, with the image that it belongs to."""
    index, row = features.cache.index, int(pairs.captions[at])
    image = _file(features, int(index.caption_image[row]))
    return {"caption_id": int(index.caption_id[row]), "caption": index.caption[row]} | image


def _file(features: Features, row: int) -> dict[str, Any]:
    index = features.cache.index
    return {"image_id": index.image_id[row], "image_file": index.image_file[row]}


def _thumbnails(found: Mapping[str, Any], root: Path, note: Note) -> dict[str, bytes]:
    """JPEGs of the images of the hits, by file name, and of a picture that was asked with, by its path."""
    from itmfeat_extract.query import thumbnail

    made, missing = {}, ""
    if found["finds"] == "captions":
        asked = Path(found["query"]).resolve()
        made[found["query"]] = thumbnail(asked.parent, asked.name, EDGE)
    names = dict.fromkeys(hit["image_file"] for hit in found["hits"])
    for name in names:
        try:
            made[name] = thumbnail(root, below(root, name), EDGE)
        except DataError as error:
            missing = missing or str(error)
    if absent := len(names) - sum(name in made for name in names):
        note(
            f"{absent} of {len(names)} pictures are not shown ({missing}); "
            "--images DIR names the folder from which the dataset was extracted"
        )
    return made
