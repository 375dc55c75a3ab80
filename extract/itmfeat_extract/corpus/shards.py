"""Shards of webdataset and img2dataset: tar files of samples.

A shard is read through once for its index and its texts; pictures are read at their place when they are asked
for, and nothing is unpacked.
"""

import glob
import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from itmfeat.errors import DataError, UsageError
from itmfeat_extract.corpus.base import Corpus, SplitFractions
from itmfeat_extract.corpus.inside import contained, writable
from itmfeat_extract.corpus.records import Record, grouped, split_in
from itmfeat_extract.corpus.rows import LAYOUT, assemble
from itmfeat_extract.corpus.samples import MOST_TEXT, PICTURES, TEXTS, Sample, distinct, read_loose, record

_MOST_SHARDS = 100_000

Place = tuple[int, int, int]
"""Number of the shard, first byte of a picture in it, and its bytes."""


@dataclass(frozen=True)
class Members:
    """Opens pictures in tar files by `SHARD/MEMBER`."""

    root: Path
    shards: list[str]
    places: dict[str, Place]

    def __call__(self, name: str) -> BinaryIO:
        """The bytes of a picture."""
        shard, start, size = self.places[name]
        path = contained(self.root, self.root / self.shards[shard])
        try:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        if len(content) != size:
            raise DataError(f"{path} became shorter while it was read; copy it again")
        return io.BytesIO(content)


def read_webdataset(root: Path, fractions: SplitFractions | None = None) -> Corpus:
    """The `*.tar` in a folder or one below it, or those that a pattern names: `{00000..00009}.tar`, `*.tar`.

    Folders or shards that are called after splits (`test/0.tar`, `train-00001.tar`) tell them. A folder of
    img2dataset without shards, with its samples as files, is read too.
    """
    root, shards = _shards(root)
    if not shards:
        return read_loose("webdataset", root, fractions)
    places: dict[str, Place] = {}
    records: list[Record] = []
    for number, split in enumerate(_splits(root, shards)):
        records.extend(_records(root, shards[number], number, split, places))
    source = shards[0] if len(shards) == 1 else f"{len(shards)} shards"
    return assemble(
        "webdataset",
        root,
        grouped(distinct(records), source),
        source=source,
        folders=("",),
        fractions=fractions,
        opener=Members(root.absolute(), shards, places),  # another machine stands in another folder
    )


def _splits(root: Path, shards: list[str]) -> list[str | None]:
    """The split of each shard by its name; None for all where there is only one, or none."""
    splits = [split_in(shard.removesuffix(".tar")) for shard in shards]
    if len(set(splits)) == 1:
        return [None] * len(shards)
    if None in splits:
        path = root / shards[splits.index(None)]
        raise DataError(f"webdataset: {path} is not called after a split, and other shards are: rename it")
    return splits


def _shards(root: Path) -> tuple[Path, list[str]]:
    """The folder, and the shards below it as relative paths: of a folder, a file or a pattern."""
    if root.is_dir():
        found = sorted(path for way in ("*.tar", "*/*.tar") for path in root.glob(way) if path.is_file())
    else:
        names = [name for pattern in _braces(str(root)) for name in sorted(glob.glob(pattern)) or [pattern]]
        found = [Path(name) for name in sorted(set(names))]  # in the order of a whole folder
        if missing := [path for path in found if not path.is_file()]:
            raise DataError(
                f"webdataset: there is no {missing[0]}: give a folder or a pattern with --root; {LAYOUT}"
            )
        root = Path(os.path.commonpath([path.absolute().parent for path in found]))
    return root, [contained(root, path.absolute()).relative_to(root.absolute()).as_posix() for path in found]


def _braces(pattern: str) -> list[str]:
    """`{00..12}` and `{a,b}` written out, as a shell does."""
    found = re.search(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        inner = found[3].split(",")
    else:
        numbers = range(int(found[1]), int(found[2]) + 1)
        inner = [f"{number:0{len(found[1])}}" for number in numbers[: _MOST_SHARDS + 1]]
    tails = _braces(pattern[found.end() :])
    if len(inner) * len(tails) > _MOST_SHARDS:
        raise UsageError(f"{pattern} names more than {_MOST_SHARDS} shards: name fewer with --root")
    return [pattern[: found.start()] + part + tail for part, tail in itertools.product(inner, tails)]


def _records(
    root: Path, shard: str, number: int, split: str | None, places: dict[str, Place]
) -> Iterator[Record]:
    """The samples of a shard in its order; where their pictures lie goes to `places`."""
    samples: dict[str, Sample] = {}
    path = root / shard
    with path.open("rb") as file:
        for member in _members(path, file):
            where = f"{path}, member {member.name!r}"
            if not writable(member.name):
                raise DataError(f"{where} has a name that is not UTF-8: write the shard again")
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, ending = base.partition(".")  # webdataset's rule: a key ends at the first dot
            sample, ending = samples.setdefault(f"{folder}/{stem}".lstrip("/"), Sample()), ending.lower()
            if ending in TEXTS:
                file.seek(member.offset_data)
                sample.add(ending, file.read(min(member.size, MOST_TEXT + 1)), where)
            elif ending in PICTURES and sample.picture:
                raise DataError(f"{where} is the second picture of its sample: write the shard again")
            elif ending in PICTURES:
                sample.picture = f"{shard}/{member.name}"
                places[sample.picture] = (number, member.offset_data, member.size)
    for key, sample in samples.items():
        if not sample.picture:
            raise DataError(f"{path}, sample {key!r} has no picture (.{', .'.join(PICTURES)})")
        yield record(key, sample, split, f"{path}, sample {key!r}")


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar; a DataError if it is damaged, cut off or compressed."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it keeps all, and a shard may have any number
                if member.isreg() and not member.issparse():
                    yield member
            file.seek(tar.offset)  # tarfile takes a damaged header for the end, which is zeros
            block = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise DataError(
            f"{path} is no tar file, or damaged ({error}): copy it again, or unpack it if it is compressed"
        ) from None
    if len(block) != tarfile.BLOCKSIZE or any(block):
        raise DataError(f"{path} is cut off or damaged: copy it again")
