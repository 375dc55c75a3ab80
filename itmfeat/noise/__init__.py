"""Noisy correspondence: wrong captions for the training split, exactly as the published protocols do it.

A protocol turns the true array caption -> image into a noisy one; the true array stays for diagnosis.
"""

from itmfeat.noise.correspondence import (
    Noisy,
    checked,
    corrupt,
    described,
    file_digest,
    from_file,
)
from itmfeat.noise.inspection import facts, fixed_points, inspect, kind_of
from itmfeat.noise.kmeans import clusters
from itmfeat.noise.protocols import PROTOCOLS, cluster, decl, derangement, ncr, replacement
from itmfeat.noise.published import PER_IMAGE, PUBLISHED, Published, publish, seed_of, write

__all__ = [
    "PER_IMAGE",
    "PROTOCOLS",
    "PUBLISHED",
    "Noisy",
    "Published",
    "checked",
    "cluster",
    "clusters",
    "corrupt",
    "decl",
    "derangement",
    "described",
    "facts",
    "file_digest",
    "fixed_points",
    "from_file",
    "inspect",
    "kind_of",
    "ncr",
    "publish",
    "replacement",
    "seed_of",
    "write",
]
