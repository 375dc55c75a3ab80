"""Where features stay while a run trains on them: on the GPU, in memory, or on the disk.

Means and small files belong on the device, larger ones in memory. What is larger still is read from the
disk, or from the page cache, batch by batch. `auto` decides by what is free.
"""

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from itmfeat.errors import ItmfeatError, UsageError, unknown

PLACES = ("auto", "gpu", "ram", "disk")
SHARE = 0.5  # of what is free goes to features at the most; the rest is for the training
_NAMES = {"gpu": "on the GPU", "ram": "in memory", "disk": "on the disk, read ahead"}

Note = Callable[[str], None]


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Need:
    """What the features of a side take, and whether they are means, which are never read from the disk."""

    size: int  # bytes
    means: bool = False


def choose(
    needed: Mapping[str, Need], wanted: str, device: torch.device, note: Note = silent
) -> dict[str, str]:
    """Where each side stays: "gpu", "ram" or "disk". The smaller side chooses first.

    Says through `note` what it chose and why. A UsageError or ItmfeatError if what is wanted cannot be.
    """
    if wanted not in PLACES:
        raise unknown("--resident", wanted, list(PLACES))
    if wanted == "gpu" and device.type != "cuda":
        raise UsageError(f"--resident gpu needs --device cuda, and this runs on {device}; choose ram or disk")
    free = {"ram": free_memory()}
    if device.type == "cuda":
        free = {"gpu": torch.cuda.mem_get_info(device)[0]} | free
    chosen: dict[str, str] = {}
    for kind, need in sorted(needed.items(), key=lambda item: item[1].size):
        last = "ram" if need.means else "disk"
        fitting = [place for place, left in free.items() if need.size <= SHARE * left]
        place = chosen[kind] = next(iter(fitting), last) if wanted == "auto" else wanted
        if place == "disk":
            place = chosen[kind] = last
        what = f"{kind} {'means' if need.means else 'features'}"
        if place in free and need.size > free[place]:
            raise ItmfeatError(
                f"the {what} take {_gb(need.size)} and {_gb(free[place])} are free {_NAMES[place]}; choose "
                f"{'fewer --tokens or images' if need.means else '--resident disk, or auto'}"
            )
        had = ", ".join(f"{_gb(left)} {name}" for name, left in free.items())
        note(f"{what} stay {_NAMES[place]}: they take {_gb(need.size)}, free are {had}")
        if place in free:
            free[place] -= need.size
    return chosen


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has left, within the limits set for it."""
    left = [_meminfo("MemAvailable")]
    left += [limit - used for limit, used in _cgroups()]
    address, data = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    left += [
        limit - used
        for limit, used in ((address, _status("VmSize")), (data, _status("VmData")))
        if limit != resource.RLIM_INFINITY
    ]
    return max(0, min(left))


def _meminfo(name: str) -> int:
    return _kilobytes(Path("/proc/meminfo"), name) or 1 << 62  # no Linux: nothing is known


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(path: Path, name: str) -> int:
    """A field like "MemAvailable:  123 kB" in bytes; 0 where there is none."""
    try:
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return int(fields[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def _cgroups() -> list[tuple[int, int]]:
    """Limit and use in bytes of the control groups that this process is in, of both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        for folder in {root / path.lstrip("/"), root}:  # inside a container the path may not be there
            try:
                limit, used = ((folder / f"memory.{name}").read_text() for name in names)
                cached = _kept(folder / "memory.stat")
                found.append((int(limit), int(used) - cached))
            except (OSError, ValueError):  # no such group, or "max"
                continue
    return found


def _kept(path: Path) -> int:
    """Bytes of a group that the kernel can take back: pages of files that are not in use."""
    lines = dict(line.split(" ", 1) for line in path.read_text().splitlines() if " " in line)
    return int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
