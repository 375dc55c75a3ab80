"""Where features stay while a run trains on them: on the GPU, in memory, or on the disk.

Means and small files belong on the device, larger ones in memory. What is larger still is read from the
disk, or from the page cache, batch by batch. `auto` decides by what is free.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from itmfeat.errors import ItmfeatError, Note, UsageError, silent, unknown
from itmfeat.machine import free_memory

PLACES = ("auto", "gpu", "ram", "disk")
SHARE = 0.5  # of what is free goes to features at the most; the rest is for the training
_NAMES = {"gpu": "on the GPU", "ram": "in memory", "pages": "in the page cache", "disk": "on the disk"}


@dataclass(frozen=True)
class Need:
    """What the features of a side take, and whether they are means, which are never read from the disk."""

    size: int  # bytes
    means: bool = False


def checked(wanted: str, device: torch.device | None = None) -> None:
    """A UsageError unless `--resident` can be this, on the device if that is known."""
    if wanted not in PLACES:
        raise unknown("--resident", wanted, list(PLACES))
    if wanted == "gpu" and device is not None and device.type != "cuda":
        raise UsageError(f"--resident gpu needs --device cuda, and this runs on {device}; choose ram or disk")


def choose(
    needed: Mapping[str, Need], wanted: str, device: torch.device, note: Note = silent
) -> dict[str, str]:
    """Where each side stays: "gpu", "ram", "pages" or "disk". The smaller side chooses first.

    What stays on the disk is "pages" if all of it fits into the memory that is left: the page cache will hold
    it, and it may be mapped.

    Says through `note` what it chose and why. A UsageError or ItmfeatError if what is wanted cannot be.
    """
    checked(wanted, device)
    free = {"ram": free_memory()}
    if device.type == "cuda":
        free = {"gpu": torch.cuda.mem_get_info(device)[0]} | free
    had = "free: " + ", ".join(f"{_gb(left)} {place}" for place, left in free.items())
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
        if place in free:
            free[place] -= need.size
    rest = [kind for kind, place in chosen.items() if place == "disk"]
    if sum(needed[kind].size for kind in rest) < free["ram"]:
        chosen |= dict.fromkeys(rest, "pages")
    for kind, place in chosen.items():
        what = "means" if needed[kind].means else "features"
        note(f"{kind} {what}, {_gb(needed[kind].size)}, stay {_NAMES[place]} ({had})")
    return chosen


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
