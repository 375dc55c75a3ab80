"""An epoch on a cache that is larger than the memory allowed: what it costs beside the disk, and in memory.

    python tests/benchmarks/bench_residency.py CACHE [--memory-mb 1200] [--order full|block]
        [--head max-linear] [--steps N]

Needs root and control groups (version 1 or 2): this process puts itself into a group with so much memory,
page cache included. Each figure with the pages of the files dropped first: what the disk delivers (whole
file, four threads), the stream of batches alone, and training. Anonymous memory is the largest seen.
"""

import argparse
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from itmfeat.api import configuration
from itmfeat.features import Features, open_features
from itmfeat.members import member_of
from itmfeat.training import Trainer, keep_freed_memory

STEP = 8 << 20


def limit_memory(size: int) -> None:
    """Enter a new control group with so many bytes."""
    root = Path("/sys/fs/cgroup")
    old = root / "memory"
    group = (old if old.is_dir() else root) / f"itmfeat-bench-{os.getpid()}"
    group.mkdir()
    name = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
    (group / name).write_text(str(size))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def forget(features: Features) -> None:
    """Drop the pages of both files from the page cache."""
    for file in (features.image, features.text):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def disk_speed(path: Path, readers: int = 4) -> float:
    """Bytes a second of the whole file, read by several threads in turns."""
    descriptor, size = os.open(path, os.O_RDONLY), path.stat().st_size

    def read(first: int) -> None:
        buffer = bytearray(STEP)
        for start in range(first * STEP, size, readers * STEP):
            os.preadv(descriptor, [buffer], start)

    begin = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    return size / seconds


def status(name: str, path: str = "/proc/self/status") -> int:
    """A number of a file of the kernel, as it stands there."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


class Anonymous(threading.Thread):
    """Watches the anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        """Look ten times a second."""
        while True:
            self.most = max(self.most, status("RssAnon") * 1024)
            time.sleep(0.1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--memory-mb", type=int, default=1200)
    parser.add_argument("--order", default="full")
    parser.add_argument("--head", default="max-linear")
    parser.add_argument("--steps", type=int, default=0, help="Only so many; 0 is an epoch.")
    options = parser.parse_args()
    limit_memory(options.memory_mb << 20)
    keep_freed_memory()
    features = open_features(options.cache)
    size = sum(file.path.stat().st_size for file in (features.image, features.text))
    print(f"cache {size / 1e9:.2f} GB, {size / (options.memory_mb << 20):.1f} times the memory allowed")
    watch = Anonymous()
    watch.start()
    forget(features)
    disk = disk_speed(features.image.path)
    print(f"disk, in order            {disk / 1e6:8.0f} MB/s")
    config = configuration(features, "infonce", head=options.head, order=options.order, epochs=1)
    with tempfile.TemporaryDirectory() as runs:  # stays empty
        trainer = Trainer(
            [member_of(config, features, Path(runs))], features, torch.device("cpu"), "auto", print
        )
    trainer.stack.train()
    for name, work in (("stream alone", False), ("training", True)):
        forget(features)
        read, begin, bytes_, steps = status("read_bytes", "/proc/self/io"), time.perf_counter(), 0, 0
        for batch in trainer.stream.epoch(0):
            if work:
                trainer.update(batch, 0)
            bytes_ += sum(value.nbytes for side in (batch.image, batch.text) for value in side.tensors())
            steps += 1
            if steps == options.steps:
                break
        seconds = time.perf_counter() - begin
        read = status("read_bytes", "/proc/self/io") - read
        print(
            f"{name:14} {steps} steps {seconds:8.1f} s, {1e3 * seconds / steps:.0f} ms a step; vectors "
            f"{bytes_ / seconds / 1e6:.0f} MB/s, from the disk {read / seconds / 1e6:.0f} MB/s "
            f"({read / disk:.1f} s of what it delivers, ratio {seconds * disk / max(read, 1):.2f})"
        )
    print(f"anonymous memory at most {watch.most / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
