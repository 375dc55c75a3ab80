"""A run of a stack while it trains: its folder, its noise, its best heads so far."""

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from itmfeat.config import RunConfig
from itmfeat.errors import DataError
from itmfeat.features import Features
from itmfeat.noise import Noisy, corrupt, from_file
from itmfeat.noise.separation import histogram, separation
from itmfeat.pairs import Ints
from itmfeat.runs import Run


@dataclass
class Member:
    """One run of the stack while it trains."""

    run: Run
    config: RunConfig
    noise: Noisy
    truth: Ints  # (C,) the true image of each training caption
    match: Tensor  # (C,) how well the nets matched each pair when they last met it; NaN before
    best: dict[str, Tensor] = field(default_factory=dict)  # heads of the best epoch so far
    best_rsum: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    diverged: int | None = None  # the epoch in which the loss stopped being a number

    def separation(self, split: Tensor | None) -> dict[str, float]:
        """How well the run tells its clean from its noisy pairs; `split` (n, C) is that of its method."""
        clean = self.noise.caption_image == self.truth
        chosen = None if split is None else split.cpu().numpy()
        return separation(clean, self.match.numpy(), chosen)

    def histogram(self) -> dict[str, list[int]]:
        """How many clean and noisy pairs the run matched how well when it last met them."""
        return histogram(self.noise.caption_image == self.truth, self.match.numpy())


def member_of(config: RunConfig, features: Features, runs: Path) -> Member:
    """The run folder (not made yet) and the noise of a configuration."""
    pairs = features.pairs("train", config.data.captions_per_image)
    asked = config.noise
    if asked.file:
        noise = from_file(Path(asked.file), pairs.caption_image)
    else:
        noise = corrupt(pairs.caption_image, asked.protocol, asked.ratio, asked.seed)
    unseen = torch.full((len(pairs.captions),), torch.nan)
    return Member(Run(runs / config.name), config, noise, pairs.caption_image, unseen)


def claimed(member: Member, locks: ExitStack, taken: list[DataError]) -> bool:
    """Whether a run is to be trained here: it is not finished, and no other process trains it.

    Its folder is made and locked; an error about the lock of another process goes to `taken`.
    """
    member.run.start(member.config)
    try:
        locks.callback(os.close, member.run.lock())
    except DataError as error:
        taken.append(error)
        return False
    return not member.run.finished
