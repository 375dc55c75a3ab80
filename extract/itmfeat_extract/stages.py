"""Ranges through three overlapped stages: decode, forward, write.

While the device works on a range (a CPU on two), threads decode the next ones and another thread writes the
last. The same loop runs in the process of a command, in its worker processes and in the tasks of a cluster; a
range is always the same batches, so its bytes do not depend on who makes it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

from itmfeat.cache.journal import Sums
from itmfeat.cache.ranges import Slot, rounded, store

AHEAD = 2  # ranges that are decoded in advance


@dataclass(frozen=True)
class Task:
    """A range, and what its maker needs of each item: file names, or token ids."""

    slot: Slot
    items: list[Any]


class Maker(Protocol):
    """From the items of a range to its payloads."""

    @property
    def together(self) -> int:
        """Ranges that are made at the same time, so that no core waits while one of them ends."""

    def prepare(self, items: list[Any], pool: ThreadPoolExecutor) -> Callable[[], Any]:
        """Begin to decode in the threads of `pool`; what is returned waits for it."""

    def make(self, prepared: Any) -> dict[str, Any]:
        """Payloads by name, as `itmfeat.cache.ranges.rounded` takes them."""


Done = Callable[[Slot, Sums], None]
"""Told of each range that is written; one call at a time."""


@dataclass
class Times:
    """Seconds, summed over all that worked."""

    total: float = 0.0
    decode: float = 0.0  # that the forward pass waited for pixels
    blocked: float = 0.0  # that it waited until the range before was written
    fetch: float = 0.0  # of the writing thread: until the device had the values, narrow, and handed them over
    store: float = 0.0  # of the writing thread: write, checksum

    def __add__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add what the block takes to one of the above."""
        start = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    def shares(self) -> dict[str, float]:
        """Decoding, forward pass and disk as parts of the time that passed: what it was waited for."""
        disk = self.blocked * self.store / max(self.store + self.fetch, 1e-9)
        total = max(self.total, 1e-9)
        decode, disk = self.decode / total, disk / total
        return {"decode": decode, "compute": max(0.0, 1 - decode - disk), "disk": disk}

    def verdict(self) -> str:
        """What bounds the speed, in a few words."""
        shares = self.shares()
        bound = max(shares, key=lambda name: shares[name])
        parts = f"decoding {shares['decode']:.0%}, forward {shares['compute']:.0%}, disk {shares['disk']:.0%}"
        return f"{bound}-bound (waited for {parts})"


def run(tasks: Iterable[Task], maker: Maker, threads: int, done: Done) -> Times:
    """Make and write ranges; `threads` decode. `done` is called in a thread of its own."""
    times = Times()
    with (
        times.of("total"),
        _pool(max(1, threads), "decode") as decoding,
        _pool(maker.together, "make") as making,
        _pool(1, "write") as writing,
    ):
        made: deque[tuple[Slot, Future[dict[str, Any]]]] = deque()
        written: deque[Future[None]] = deque()

        def hand_over() -> None:
            slot, payloads = made.popleft()
            found = payloads.result()
            with times.of("blocked"):
                if written:
                    written.popleft().result()
            written.append(writing.submit(_write, slot, found, done, times))

        for task, prepared in _ahead(tasks, maker, decoding):
            with times.of("decode"):
                ready = prepared()
            made.append((task.slot, making.submit(maker.make, ready)))
            if len(made) == maker.together:
                hand_over()
        while made:
            hand_over()
        if written:
            written.popleft().result()
    return times


@contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=name == "decode")


def _ahead(
    tasks: Iterable[Task], maker: Maker, pool: ThreadPoolExecutor
) -> Iterator[tuple[Task, Callable[[], Any]]]:
    """The tasks, of which `AHEAD` more are being decoded."""
    waiting: deque[tuple[Task, Callable[[], Any]]] = deque()
    for task in tasks:
        waiting.append((task, maker.prepare(task.items, pool)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _write(slot: Slot, payloads: dict[str, Any], done: Done, times: Times) -> None:
    with times.of("fetch"):
        narrow = rounded(slot, **payloads)
    with times.of("store"):
        sums = store(slot, narrow)
    done(slot, sums)
