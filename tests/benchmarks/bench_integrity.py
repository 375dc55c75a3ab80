"""Kills, flipped bytes, full disks and double starts of real extractions; asserts, counts and prints.

The commands run as children of this process, forked after the libraries and the weights were loaded: that
saves their start, so that the kills hit the work. Ranges are made small, so that a small extraction has many.

Kills: `itmfeat extract --workers 2` is killed, half of the times after a random time, half of the times at a
random write, push to the disk, rename or removal; then it is started again, killed again, and left alone the
third time. Every file is compared with those of an extraction without kills.

Flips: one random byte gets another random value, half of the times anywhere in the cache, half of the times
outside the payloads. `verify` must find it. HDF5 reads damaged metadata, so each `verify` is a child of its
own with a limit of memory and time. For some flips a short `train` must refuse in one sentence (exit code 3),
or end with the results of the undamaged cache.

Disks: extraction into tmpfs of several sizes (needs root), and again after room was made. Twice: two commands
started at about the same moment. Index: time and memory of opening one of COCO's size.

    python tests/benchmarks/bench_integrity.py --root ../shared/flickr8k --kills 100 --flips 1000 --trains 60
"""

import argparse
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from children import Child, command, die_at

from itmfeat.cache import FeatureFile, open_cache, verify, write_index
from itmfeat.cli import main as itmfeat
from itmfeat.errors import DataError
from itmfeat_extract import backbones, pipeline

SYSTEM_CALLS = ("pwrite", "write", "fsync", "replace", "unlink", "ftruncate")
COCO_IMAGES, COCO_CAPTIONS = 123_287, 616_767


def contents(cache: Path) -> dict[str, str]:
    """Digest of each file, whatever it is called: leftovers count."""
    return {
        str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(cache.rglob("*"))
        if file.is_file()
    }


def _counted(uses: Counter[str], call: str, plain: Any, *arguments: Any, **options: Any) -> Any:
    uses[call] += 1
    return plain(*arguments, **options)


def count_calls(extract: list[object]) -> dict[str, int]:
    """How often an extraction without kills uses each system call."""

    def report() -> None:
        uses: Counter[str] = Counter()
        for call in SYSTEM_CALLS:
            setattr(os, call, functools.partial(_counted, uses, call, getattr(os, call)))
        sys.argv = ["itmfeat", *map(str, extract)]
        try:
            itmfeat()
        finally:
            print("\n" + json.dumps(uses))

    end = Child(report).wait()
    assert end.code == 0, end.err
    return json.loads(end.out.splitlines()[-1])


def kills(options: argparse.Namespace, extract: Callable[[Path], list[object]], whole: Path) -> None:
    """Kill extractions and compare."""
    chance, expected = random.Random(options.seed), contents(whole)
    start = time.perf_counter()
    uses = count_calls(extract(whole.with_name("counted")))
    seconds = time.perf_counter() - start
    assert contents(whole.with_name("counted")) == expected, "two extractions without kills differ"
    done, rounds, missed, phases = 0, 0, 0, Counter()
    begun = time.perf_counter()
    while done < options.kills:
        cache, rounds = whole.with_name(f"killed{rounds}"), rounds + 1
        for _ in range(2):
            call = chance.choice([name for name in SYSTEM_CALLS if uses.get(name)])
            timed = chance.random() < 0.5
            plan = (lambda: None) if timed else die_at(call, chance.randint(1, uses[call]))
            child = command(*extract(cache), before=plan)
            if timed and not child.ended(chance.uniform(0, seconds)):
                os.kill(child.pid, signal.SIGKILL)
            end = child.wait()
            assert end.code in (0, -signal.SIGKILL), end.err
            missed += end.code == 0
            done += end.code != 0
            phases["time" if timed else call] += end.code != 0
        end = command(*extract(cache)).wait()
        assert end.code == 0, end.err
        found = contents(cache)
        assert found == expected, f"{cache} differs: {set(found.items()) ^ set(expected.items())}"
        shutil.rmtree(cache)
    print(
        f"kills: {done} in {rounds} extractions of {seconds:.1f} s, all resumed to the same bytes and no "
        f"other file; at {dict(phases)}; {missed} came after the end; {time.perf_counter() - begun:.0f} s"
    )


def places(cache: Path, chance: random.Random, count: int) -> Iterator[tuple[Path, int, str]]:
    """Random positions: half anywhere, half outside payloads; each with the kind of its bytes."""
    files = sorted(cache.rglob("*.h5"))
    payloads = {file: [] if file.name == "dataset.h5" else _spans(file) for file in files}
    inside: list[tuple[Path, int]] = []
    for file in files:
        held = np.zeros(file.stat().st_size, bool)
        for first, last in payloads[file]:
            held[first:last] = True
        inside += [(file, int(place)) for place in np.flatnonzero(~held)]
    sizes = [file.stat().st_size for file in files]
    for turn in range(count):
        if turn % 2:
            file, place = chance.choice(inside)
        else:
            file = chance.choices(files, sizes)[0]
            place = chance.randrange(file.stat().st_size)
        held_by = any(first <= place < last for first, last in payloads[file])
        yield file, place, "index" if file.name == "dataset.h5" else "payload" if held_by else "skeleton"


def _spans(file: Path) -> list[tuple[int, int]]:
    return [(extent.offset, extent.offset + extent.nbytes) for extent in FeatureFile(file).extents.values()]


@contextmanager
def flipped(file: Path, place: int, chance: random.Random) -> Iterator[None]:
    """One byte of a file with another value, until the end of the block."""
    with file.open("r+b", buffering=0) as raw:
        old = os.pread(raw.fileno(), 1, place)
        os.pwrite(raw.fileno(), bytes([old[0] ^ chance.randint(1, 255)]), place)
        try:
            yield
        finally:
            os.pwrite(raw.fileno(), old, place)


def checked(cache: Path) -> None:
    """`verify` as a command would end: exit code 3 and a sentence."""
    try:
        damaged = verify(cache)
    except DataError as error:
        damaged = [str(error)]
    print("; ".join(damaged), "\n", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, sep="")
    raise SystemExit(3 if damaged else 0)


def flips(options: argparse.Namespace, cache: Path) -> None:
    """Flip bytes, verify, and train on some."""
    chance, limit = random.Random(options.seed), 16 << 30
    before = contents(cache)
    plain = Child(functools.partial(checked, cache), limit).wait()
    assert plain.code == 0, plain
    memory = int(plain.out.splitlines()[-1])
    found, slowest, most = Counter(), 0.0, 0
    trained: Counter[str] = Counter()
    expected = train(cache, cache.with_name("undamaged"), limit)
    every = max(options.flips // max(options.trains, 1), 1)
    begun = time.perf_counter()
    for turn, (file, place, kind) in enumerate(places(cache, chance, options.flips)):
        with flipped(file, place, chance):
            start = time.perf_counter()
            end = Child(functools.partial(checked, cache), limit).wait(60)
            slowest = max(slowest, time.perf_counter() - start)
            assert end.code == 3, f"byte {place} of {file}: {end}"
            most = max(most, int(end.out.splitlines()[-1]) - memory)
            found[kind] += 1
            if options.trains and turn % every < 2:  # one anywhere, one outside the payloads
                result = train(cache, cache.with_name("damaged"), limit)
                name = result if isinstance(result, str) else "OTHER RESULTS"
                trained[f"{kind}: {'the same results' if result == expected else name}"] += 1
    assert contents(cache) == before
    print(
        f"flips: {sum(found.values())} of {options.flips} found by verify, {dict(found)}; no crash, no "
        f"traceback; slowest {slowest:.1f} s, at most {most} MB more than without; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    for name, count in sorted(trained.items()):
        print(f"  train with a flip in {name}: {count}")
    assert not any("OTHER" in name for name in trained), "a damaged byte reached the results"


def train(cache: Path, runs: Path, memory: int) -> str | tuple[bytes, bytes]:
    """A short training: its results and heads, or in words how it refused."""
    where = ["--cache", cache, "--runs", runs, "--epochs", 2, "--batch-size", 32]
    end = command("train", "--loss", "infonce", *where, memory=memory).wait()
    try:
        if end.code == 3 and "Traceback" not in end.err:
            return "refused in one sentence"
        if end.code:
            return f"EXIT {end.code}: {end.err[-300:]}"
        (run,) = runs.iterdir()
        return (run / "results.json").read_bytes(), (run / "head.safetensors").read_bytes()
    finally:
        shutil.rmtree(runs, ignore_errors=True)


def disks(extract: Callable[[Path], list[object]], whole: Path) -> None:
    """Extract into small disks, make room, go on."""
    expected = contents(whole)
    need = sum(file.stat().st_size for file in whole.rglob("*.h5"))
    said: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
            for late in (False, True):  # full from the start, or filled by others during the extraction
                end = _fill(Path(folder), int(need * share), need, late, extract, expected)
                said[end] += 1
    for sentence, count in sorted(said.items()):
        print(f"disk: {count} x exit 1, then resumed to the same bytes: {sentence}")


def _fill(
    disk: Path,
    size: int,
    need: int,
    late: bool,
    extract: Callable[[Path], list[object]],
    expected: dict[str, str],
) -> str:
    """One disk; returns the sentence, without its paths and numbers."""
    room = need * 2 + (16 << 20)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room if late else size}", "tmpfs", disk], check=True
    )
    try:
        plan = functools.partial(_crowd, disk, size) if late else lambda: None
        end = command(*extract(disk / "cache"), before=plan).wait()
        said = end.sentence(1)
        (disk / "others").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={room}", disk], check=True)
        end = command(*extract(disk / "cache")).wait()
        assert end.code == 0, end.err
        assert contents(disk / "cache") == expected
    finally:
        subprocess.run(["umount", disk], check=True)
    return " ".join("N" if word[0].isdigit() else word for word in said.replace(str(disk), "DISK").split())


def _crowd(disk: Path, size: int) -> None:
    """Fill the disk but for `size` bytes as soon as the first range is being written."""
    plain = os.pwrite

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        if "/image/" in os.readlink(f"/proc/self/fd/{descriptor}") and not (disk / "others").exists():
            with (disk / "others").open("wb") as file:
                left = shutil.disk_usage(disk).free - size
                os.posix_fallocate(file.fileno(), 0, max(left, 1))
        return plain(descriptor, data, position)

    os.pwrite = pwrite


def twice(options: argparse.Namespace, extract: Callable[[Path], list[object]], whole: Path) -> None:
    """Two extractions on one cache at about the same moment: one finishes, the other says why not."""
    chance, expected, said = random.Random(options.seed), contents(whole), Counter()
    for turn in range(options.twice):
        cache = whole.with_name(f"twice{turn}")
        first = command(*extract(cache))
        time.sleep(chance.uniform(0, 0.05) if turn % 2 else chance.uniform(0, 1))
        second = command(*extract(cache))
        ends = sorted([second.wait(), first.wait()], key=lambda end: end.code)
        assert ends[0].code == 0, ends
        if ends[1].code == 0:
            said["both finished: the second came after a file was done"] += 1
        else:
            said[ends[1].sentence(3).replace(str(cache), "CACHE")] += 1
        assert contents(cache) == expected
        shutil.rmtree(cache)
    for sentence, count in sorted(said.items()):
        print(f"twice: {count} x {sentence}")


def write_coco(cache: Path) -> None:
    """An index of COCO's size: random words of about 52 bytes a caption."""
    rng = np.random.default_rng(0)
    per_image = np.full(COCO_IMAGES, 5)
    per_image[rng.choice(COCO_IMAGES, COCO_CAPTIONS - 5 * COCO_IMAGES, replace=False)] += 1
    words = [
        "a",
        "man",
        "riding",
        "wave",
        "on",
        "top",
        "of",
        "surfboard",
        "dog",
        "street",
        "the",
        "with",
        "young",
    ]
    write_index(
        cache / "dataset.h5",
        "coco",
        {
            "image_id": [str(number) for number in rng.permutation(600_000)[:COCO_IMAGES]],
            "image_file": [f"val2014/COCO_val2014_{number:012}.jpg" for number in range(COCO_IMAGES)],
            "caption": [" ".join(chosen) for chosen in rng.choice(words, (COCO_CAPTIONS, 11))],
        },
        {
            "image_split": np.repeat(np.arange(3, dtype=np.uint8), [COCO_IMAGES - 10_000, 5_000, 5_000]),
            "caption_id": rng.permutation(900_000)[:COCO_CAPTIONS],
            "caption_image": np.repeat(np.arange(COCO_IMAGES), per_image),
        },
    )


def index(rounds: int, cache: Path) -> None:
    """Time and memory of opening it, in fresh processes."""
    write_coco(cache)
    code = (
        "import re, sys, time; from itmfeat.cache import open_cache\n"  # ru_maxrss outlives exec
        "used = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "before, start = used(), time.perf_counter(); open_cache(sys.argv[1])\n"
        "print(time.perf_counter() - start, used() - before, used())\n"
    )
    for _ in range(rounds):
        run = subprocess.run([sys.executable, "-c", code, cache], check=True, capture_output=True, text=True)
        seconds, grown, peak = map(float, run.stdout.split())
        print(f"index of COCO's size: {seconds:.2f} s, {grown:.0f} MB more, {peak:.0f} MB with all imports")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--root", type=Path, default=Path("../shared/flickr8k"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--trains", type=int, default=60, help="for how many of the flips to train, about")
    parser.add_argument("--twice", type=int, default=10)
    parser.add_argument("--disks", action="store_true", help="needs root: mounts tmpfs")
    parser.add_argument("--opens", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipeline.IMAGE_RANGE, pipeline.TEXT_RANGE = 8, 32
    backbones.load_image = functools.cache(backbones.load_image)
    backbones.load_text = functools.cache(backbones.load_text)
    backbones.load_image("efficientnet-lite0", "auto")
    backbones.load_text("minilm-l6", "auto")

    def extract(cache: Path) -> list[object]:
        what = ["extract", options.dataset, "--root", options.root, "--limit", options.images]
        return [*what, "--workers", 2, "--cache", cache]

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        assert command(*extract(whole)).wait().code == 0
        sizes = {file.name: file.stat().st_size for file in whole.rglob("*.h5")}
        print(f"{options.images} images, {open_cache(whole).index.captions} captions, bytes: {sizes}")
        if options.twice:
            twice(options, extract, whole)
        if options.disks:
            disks(extract, whole)
        if options.flips:
            flips(options, whole)
        if options.kills:
            kills(options, extract, whole)
        if options.opens:
            index(options.opens, Path(folder) / "coco")


if __name__ == "__main__":
    main()
