"""One feature file: the ranges that are missing are made by an engine, logged, and the file is finished."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itmfeat.cache import FeatureSpec, FeatureWriter, holds
from itmfeat.cache.contributor import Contributor
from itmfeat.cache.journal import Sums
from itmfeat.cache.ranges import Slot
from itmfeat.errors import Note
from itmfeat_extract.launch import Launch
from itmfeat_extract.stages import Done, Maker, Task, Times, run

Progress = Callable[[str, int, int], None]
"""Called with what is being extracted, items done and items in all."""

Engine = Callable[[Iterable[Task], Maker, Done], Times]
"""Has ranges made, somewhere: `Here`, `workers.Processes` or `ray_engine.Cluster`."""


@dataclass(frozen=True)
class Here:
    """An engine: this process, with so many threads that decode."""

    threads: int

    def __call__(self, tasks: Iterable[Task], maker: Maker, done: Done) -> Times:
        """Have all ranges made."""
        return run(tasks, maker, self.threads, done)


@dataclass(frozen=True, eq=False)
class Work:
    """A file, and where what goes into it comes from."""

    path: Path
    spec: FeatureSpec
    items: Callable[[range], list[Any]]  # what the maker needs of each item
    progress: Progress
    note: Note

    def run(self, maker: Maker, engine: Engine, launch: Launch) -> Path:
        """Have the missing ranges made and finish the file; what was the bottleneck is noted."""
        count, start, times = len(self.spec.lengths), time.monotonic(), Times()
        with launch.open(self.path, self.spec) as writer:
            made, left = 0, _left(writer)

            def done(slot: Slot, sums: Sums) -> None:
                nonlocal made, left
                writer.log(slot.index, sums)
                made, left = made + len(slot.items), left - len(slot.items)
                self.progress(self.spec.backbone, count - left, count)

            def make(indices: list[int]) -> None:
                nonlocal left, times
                left = _left(writer)
                self.progress(self.spec.backbone, count - left, count)
                if indices:
                    times += self._made(writer, indices, maker, engine, done)

            make(launch.share(writer.pending))
            if isinstance(writer, FeatureWriter):
                launch.gather(writer, make)
            seconds = time.monotonic() - start
            path = writer.finish()
        if made:
            rate = made / max(seconds, 1e-9)
            who = f" by the first of {launch.world} copies" if launch.world > 1 else ""
            self.note(f"{self.spec.backbone}: {made} items{who}, {rate:.1f}/s, {times.verdict()}")
        return path

    def _made(
        self,
        writer: FeatureWriter | Contributor,
        indices: list[int],
        maker: Maker,
        engine: Engine,
        done: Done,
    ) -> Times:
        tasks = (Task(writer.slot(each), self.items(writer.items(each))) for each in indices)
        try:
            return engine(tasks, maker, done)
        except FileNotFoundError:
            # A contributor that fell behind: the first rank made its ranges too, and has finished the file.
            if isinstance(writer, FeatureWriter) or not holds(self.path, self.spec):
                raise
            return Times()


def _left(writer: FeatureWriter | Contributor) -> int:
    """Items that are still to be made."""
    return sum(len(writer.items(index)) for index in writer.pending)
