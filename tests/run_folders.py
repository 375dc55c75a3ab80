"""Run folders as a report reads them, written by hand."""

import json
from pathlib import Path
from typing import Any

DIGESTS = {0.2: "4d367b5592645950", 0.4: "8152f92aa51c5afc"}


def recalls(first: float) -> dict[str, float]:
    """One direction, with a decimal that rounding loses."""
    return {"r1": first, "r5": first + 20.04, "r10": first + 30.04, "medr": 2.0, "meanr": 9.5}


def make_run(
    folder: Path,
    first: float | None,
    loss: str = "triplet",
    ratio: float = 0.2,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A run whose image-to-text R@1 is `first`; unfinished without one. `changes` replace sections;
    `nets` says how many nets its heads are."""
    folder.mkdir(parents=True)
    config = {
        "dataset": "flickr8k",
        "image_backbone": "efficientnet-lite0",
        "text_backbone": "minilm-l6",
        "head": {"name": "max-linear", "pooling": "max", "projection": "linear", "dim": 1024},
        "loss": {"name": loss, "margin": 0.2},
        "noise": {"ratio": ratio, "protocol": "ncr", "seed": 96},
        "seed": seed,
    }
    results: dict[str, Any] = {"protocol": "1k", "split": "test", "images": 1000, "captions": 5000}
    manifest = {
        "noise": {"digest": DIGESTS.get(ratio, "0" * 16), "effective": ratio * 0.999},
        "selection": {"split": "val", "epoch": 7},
        "versions": {"torch": "2.13.0"},
    }
    if "nets" in changes:
        header = json.dumps({"image.linear.bias": {"shape": [changes["nets"], 1], "dtype": "F32"}}).encode()
        (folder / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "config.json").write_text(json.dumps(config | changes.get("config", {})))
    (folder / "manifest.json").write_text(json.dumps(manifest | changes.get("manifest", {})))
    if first is not None:
        # The stored rSum is wrong on purpose: ours is the sum of the six recalls.
        results |= {"i2t": recalls(first), "t2i": recalls(first - 10), "rsum": -1.0}
        (folder / "results.json").write_text(json.dumps(results | changes.get("results", {})))
    return folder
