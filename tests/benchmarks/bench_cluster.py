"""An extraction on a Ray cluster of two nodes on this machine, with faults, beside one in a single process.

When the first ranges are in, a worker process that is at work is killed; with --kill-node a node as well, a
little later. The two caches must hold the same bytes; the exit code says whether they do.

    python tests/benchmarks/bench_cluster.py --root ../shared/flickr8k --images 512 --kill-node
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

# Before ray is imported. Its nodes die here alone, and are found dead within seconds, not half a minute.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as others on a busy machine: by default workers wait for all others
    "RAY_memory_monitor_refresh_ms": "0",  # others may have filled the memory
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}

COMMAND = [sys.executable, "-c", "from itmfeat.cli import main; main()", "extract"]


def children(process: int) -> list[int]:
    """Processes below one, at any depth."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found, fresh = [], [process]
    while fresh:
        fresh = [child for child, parent in parents.items() if parent in fresh]
        found += fresh
    return found


def busy_workers() -> list[int]:
    """Processes of our cluster that are making ranges now."""
    found = []
    for process in children(os.getpid()):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::make_group"):
            found.append(process)
    return found


def kill_worker(running: subprocess.Popen[bytes], journal: Path) -> None:
    """Kill one that is at work as soon as a range is in the journal."""
    while running.poll() is None:
        at_work = busy_workers()
        with suppress(FileNotFoundError, ProcessLookupError):  # not begun, or over since that look
            if at_work and b'"range"' in journal.read_bytes():
                os.kill(at_work[0], signal.SIGKILL)
                print(f"killed worker {at_work[0]}")
                return
        time.sleep(0.05)


def clustered(arguments: list[str], cache: Path, journal: Path, kill_node: bool) -> tuple[int, float]:
    """Exit code and seconds of an extraction on two nodes."""
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    with chdir("/"):  # machines of a real cluster know nothing of the folder that a command runs in
        cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        second = cluster.add_node(**size)
    try:
        start = time.perf_counter()
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        command = [*COMMAND, *arguments, "--cache", str(cache), "--engine", "ray"]
        running = subprocess.Popen(command, env=environment)
        kill_worker(running, journal)
        if kill_node:
            time.sleep(2)
            cluster.remove_node(second, allow_graceful=False)
            print("killed a node")
        return running.wait(), time.perf_counter() - start
    finally:
        cluster.shutdown()


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--root", type=Path, default=Path("../shared/flickr8k"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--kill-node", action="store_true")
    options = parser.parse_args()

    arguments = [options.dataset, "--root", str(options.root), "--limit", str(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        alone, both = Path(folder) / "alone", Path(folder) / "both"
        start = time.perf_counter()
        subprocess.run([*COMMAND, *arguments, "--cache", str(alone)], check=True, stdout=subprocess.DEVNULL)
        print(f"one process {time.perf_counter() - start:.1f} s", flush=True)
        journal = both / "image" / "efficientnet-lite0.h5.journal"
        code, seconds = clustered(arguments, both, journal, options.kill_node)
        print(f"two nodes {seconds:.1f} s, exit code {code}")
        different = subprocess.run(["diff", "-r", alone, both], check=False).returncode
    print("different bytes" if different else "the same bytes")
    sys.exit(bool(code or different))


if __name__ == "__main__":
    main()
