"""What a stack takes: an estimate, written down so that it can be checked."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from itmfeat.config import DataConfig, HeadConfig, RunConfig
from itmfeat.features import reopen
from itmfeat.losses import LOSSES
from itmfeat.machine import free_memory
from itmfeat.residency import SHARE
from itmfeat.robust import METHODS
from itmfeat.stack import build_heads
from itmfeat.sweeps.expand import Setting

FLOAT = 4  # bytes
COPIES = 7  # of a net's weights: itself, gradient, two moments, the best so far, and two while it is saved
STACK = 300 << 20  # bytes of a stack whatever its width: buffers of the libraries, batches on their way
RESERVE = 0.7  # of what is free is planned with; the rest is for what the estimate leaves out


@dataclass(frozen=True)
class Facts:
    """What the estimate needs to know of a cache and a head."""

    weights: int  # of both heads of a net
    sides: tuple[tuple[int, float], ...]  # dim and mean number of vectors of an image and of a text
    validation: int  # images and captions of the validation split
    captions: int  # of the training split
    features: int  # bytes of what the heads read


def nets(config: RunConfig) -> int:
    """Nets of a run: two where its robust method teaches them by each other."""
    return METHODS[config.robust["name"]].method.nets


def free_on(device: torch.device) -> int:
    """Bytes that stacks may take on a device."""
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return int(RESERVE * left)


def shared_bytes(setting: Setting) -> int:
    """Bytes of a stack besides its runs: the features that stay in memory, and `STACK`."""
    needed = facts(setting.cache, setting.config.data, setting.config.head).features
    return STACK + min(needed, int(SHARE * free_memory()))  # what is more stays on the disk


def run_bytes(setting: Setting) -> int:
    """Bytes that a run adds to its stack.

    For each net: its weights `COPIES` times; what a step keeps for the gradient; the similarities of the
    batch in both directions, a dozen times; the embeddings of the validation split; a few numbers a caption.
    """
    config = setting.config
    known = facts(setting.cache, config.data, config.head)
    batch, dim = config.schedule.batch_size, config.head.dim
    step = batch * sum(
        _kept(config.head, pooling, *side)
        for pooling, side in zip(config.head.poolings, known.sides, strict=True)
    )
    net = COPIES * known.weights + step + 12 * batch**2 + 2 * known.validation * dim + 8 * known.captions
    if LOSSES[config.loss["name"]].memory:  # momentum heads, queues, similarities to them
        size = int(config.loss["memory"])
        net += known.weights + 2 * size * dim + 6 * batch * size
    return int(FLOAT * net * nets(config))


def _kept(head: HeadConfig, pooling: str, dim: int, length: float) -> float:
    """Numbers that a step keeps of an item: its input, its embeddings, its hidden layer."""
    vectors = 1.0 if pooling == "mean" else length
    return 2 * dim * vectors + 5 * head.dim * vectors + head.dim * (14 if head.projection == "mlp" else 6)


@lru_cache(maxsize=64)
def facts(cache: Path, data: DataConfig, head: HeadConfig) -> Facts:
    """Facts of the features that a configuration names, and of a net on them."""
    features = reopen(cache, data)
    pairs = {split: features.pairs(split, data.captions_per_image) for split in ("train", "val", "test")}
    images = np.concatenate([found.images for found in pairs.values()])
    captions = np.concatenate([found.captions for found in pairs.values()])
    heads = build_heads(head, features.dims, [torch.Generator()])
    files = ((features.image, images), (features.text, captions))
    return Facts(
        sum(value.numel() for each in heads for value in each.parameters()),
        tuple((file.dim, float(np.mean(file.lengths(rows)))) for file, rows in files),
        len(pairs["val"].images) + len(pairs["val"].captions),
        len(pairs["train"].captions),
        sum(need.size for need in features.needs(head, images, captions).values()),
    )
