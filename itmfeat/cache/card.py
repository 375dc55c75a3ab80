"""The README of a cache on the Hugging Face hub: what it holds, and under which terms.

The terms of the datasets are those of `data/README.md`. A cache holds captions and features, no photographs.
"""

import re
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
"""What `describe` tells of a cache."""


@dataclass(frozen=True)
class Terms:
    """Under which terms a dataset is given out, and by whom."""

    terms: str
    link: str
    paper: str


_RESEARCH = "non-commercial research and education; the photographs belong to their photographers"
_FLICKR30K = Terms(
    f"{_RESEARCH}, the captions are under a Creative Commons Attribution-ShareAlike licence",
    "https://shannon.cs.illinois.edu/DenotationGraph/",
    "Young, Lai, Hodosh and Hockenmaier, *From image descriptions to visual denotations*, TACL 2014",
)
DATASETS: dict[str, Terms] = {
    "demo": Terms("no licence needed: drawn by `itmfeat extract demo`", "", ""),
    "flickr8k": Terms(
        _RESEARCH,
        "http://nlp.cs.illinois.edu/HockenmaierGroup/8k-pictures.html",
        "Hodosh, Young and Hockenmaier, *Framing Image Description as a Ranking Task*, JAIR 2013",
    ),
    "flickr30k": _FLICKR30K,
    "f30k": _FLICKR30K,  # what the field's folders call it, and so do imports
    "coco": Terms(
        "the captions are CC BY 4.0; each photograph has the Flickr licence that the captions file states "
        "for it, many of them non-commercial",
        "https://cocodataset.org/#download",
        "Lin et al., *Microsoft COCO*, ECCV 2014; Chen et al., *Microsoft COCO Captions*, 2015",
    ),
}

_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
_ELSEWHERE = "see the model card"  # what the extractor records for a checkpoint that is no preset
_COLUMNS = ("file", "backbone", "weights", "vectors", "dtype", "tokens", "bytes", "digest", "licence")


def write_card(facts: Facts, repo: str, revision: str | None = None) -> str:
    """README.md for a cache in a dataset repository: front matter of the hub, then Markdown."""
    name = _plain(facts["dataset"])
    splits = [f"| {split} | {images} | {captions} |" for split, (images, captions) in facts["splits"].items()]
    at = f" --revision {revision}" if revision else ""
    lines = [
        f"---\n{_front_matter(facts)}\n---\n",
        f"# {name}: frozen features for image-text matching\n",
        f"A cache of itmfeat: the captions of the dataset {name}, which image each belongs to, its splits,",
        "and features of frozen backbones in HDF5. It holds no photographs.\n",
        f"    itmfeat cache pull {repo}{at}\n",
        "checks every byte and makes a cache that `itmfeat train` reads. The files are plain HDF5, described",
        "in `itmfeat/cache/README.md` of the toolkit for a reader in any language.\n",
        f"## Dataset\n\n{name}, digest `{facts['digest']}`.\n",
        "| split | images | captions |\n|---|---:|---:|",
        *splits,
        "\n## Features\n",
        f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}",
        *(_row(file) for file in facts["features"]),
        f"\n## Terms\n\n- Dataset {name}: {_dataset_terms(facts)}",
        *(f"- Weights of {_plain(file['name'])}: {_weight_terms(file)}" for file in facts["features"]),
        "\nFeatures are made from the photographs, the captions and the weights, so all these terms hold.\n",
        f"## To cite\n\n{_citation(facts)}",
    ]
    return "\n".join(lines) + "\n"


def caveats(facts: Facts) -> list[str]:
    """A sentence for each term of a cache that is unknown or rules out commercial use."""
    found = []
    if facts["dataset"] not in DATASETS:
        found.append(f"the terms of the dataset {facts['dataset']} are not known: complete README.md")
    for file in facts["features"]:
        licence = _licence(file)
        if licence is None:
            found.append(f"the licence of the weights of {file['name']} is not known: complete README.md")
        elif _non_commercial(licence):
            found.append(f"the weights of {file['name']} are for non-commercial use alone ({licence})")
    return found


def _front_matter(facts: Facts) -> str:
    """YAML that the hub reads. The licence is `other`: several terms meet, and the text names them."""
    from huggingface_hub import DatasetCardData

    captions = sum(captions for _, captions in facts["splits"].values())
    size = next((text for most, text in _SIZES.items() if captions < most), "n>10M")
    data = DatasetCardData(
        pretty_name=f"{facts['dataset']}: frozen features for image-text matching",
        license="other",
        license_name="terms-of-dataset-and-backbones",
        size_categories=[size],
        tags=["itmfeat", "image-text-matching", "cross-modal-retrieval", "features"],
        viewer=False,  # it shows tables, and these are ragged arrays
    )
    return data.to_yaml(line_break="\n").strip()


def _row(file: Facts) -> str:
    made = file["fingerprint"]
    cells = (
        f"`{file['kind']}/{file['name']}.h5`",
        made.get("source", made.get("backbone", file["name"])),
        _short(made.get("weights")),
        f"{file['vectors']} x {file['dim']}",
        file["dtype"],
        file["tokens"],
        file["bytes"],
        _short(file["digest"]),
        _licence(file) or "unknown",
    )
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _short(digest: object) -> str:
    """The first digits of a digest, enough to compare; whatever is no digest as it is."""
    text = str(digest or "unknown")
    return f"`{text[:12]}`" if re.fullmatch(r"[0-9a-f]{40,64}", text) else text


def _plain(value: object) -> str:
    """Text that ends neither a cell nor a line."""
    return " ".join(str(value).replace("|", "/").split())


def _licence(file: Facts) -> str | None:
    """The licence of a backbone's weights, as the extractor recorded it; None if it knew none."""
    licence = str(file["fingerprint"].get("licence") or "")
    return None if licence in ("", "unknown", _ELSEWHERE) else licence


def _non_commercial(licence: str) -> bool:
    return re.search(r"non-?commercial|(?<![a-z])nc(?![a-z])", licence.lower()) is not None


def _weight_terms(file: Facts) -> str:
    licence, source = _licence(file), file["fingerprint"].get("source", "")
    if licence is None:
        where = f"; see the model card of {_plain(source)}" if source else ""
        return f"**the licence is not known** to who made this cache{where}."
    limit = " **Non-commercial use alone.**" if _non_commercial(licence) else ""
    return f"{_plain(licence)}.{limit}"


def _dataset_terms(facts: Facts) -> str:
    known = DATASETS.get(facts["dataset"])
    if known is None:
        return "**the terms are not known** to who made this cache; ask where the dataset comes from."
    return f"{known.terms}.{f' From <{known.link}>.' if known.link else ''}"


def _citation(facts: Facts) -> str:
    known = DATASETS.get(facts["dataset"])
    dataset = "The dataset by its paper. " if known is None else f"The dataset: {known.paper}. "
    return (
        f"{dataset if known is None or known.paper else ''}The backbones by their papers, which their model "
        "cards name.\nThis copy of the features by the address of this repository, its revision and the "
        "digests above."
    )
