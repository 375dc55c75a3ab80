"""Copies of one command that a launcher started: torchrun, or srun of Slurm.

Each copy takes the ranges `rank`, `rank + world`, ... of every file, on a device of its own; the first lays
the files out and finishes them. They meet in the files alone, so these must lie where all of them see them.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from itmfeat.cache import FeatureSpec, FeatureWriter
from itmfeat.cache.contributor import POLL, Contributor
from itmfeat.errors import UsageError

# Seconds. The first rank does the ranges of others that log nothing for so long; the others wait longer for
# the first, which reads the whole file before it seals it.
PATIENCE, LAST_PATIENCE = 120.0, 1800.0


@dataclass(frozen=True)
class Launch:
    """Which of how many copies this process is; `local` counts on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def open(self, path: Path, spec: FeatureSpec) -> FeatureWriter | Contributor:
        """The file of `path`, as its writer or as one who contributes to it."""
        return (
            Contributor(path, spec, self.rank, self.world, LAST_PATIENCE)
            if self.rank
            else FeatureWriter(path, spec)
        )

    def share(self, pending: list[int]) -> list[int]:
        """The ranges that are this process's."""
        return [index for index in pending if index % self.world == self.rank]

    def gather(self, writer: FeatureWriter, make: Callable[[list[int]], None]) -> None:
        """Wait for the ranges of the others; `make` those of which nothing is heard."""
        heard = time.monotonic()
        while writer.pending:
            before = len(writer.pending)
            writer.refresh()
            if len(writer.pending) < before:
                make([])  # says how far it is
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE:
                make(writer.pending[:1])
            else:
                time.sleep(POLL)


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says: variables of torchrun, else those of a Slurm step, else alone."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        # Not SLURM_NTASKS, which a batch script has too, where the command runs once.
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if not all(environment.get(name) for name in names):
            continue
        try:
            rank, world, local = (int(environment[name]) for name in names)
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world or local < 0:
            said = ", ".join(f"{name}={environment[name]}" for name in names)
            raise UsageError(f"the environment says {said}, which fits no launch: unset these")
        if world > 1:
            return Launch(rank, world, local)
    return Launch()
