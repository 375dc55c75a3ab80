"""What the machine has left for this process."""

import resource
from pathlib import Path


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
