"""What tests of both packages need: the shared research data, and small trees of files."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: a second thread gains nothing on small tensors, and waits on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whatever says here how wide and colourful a terminal is, and what launchers say: before rich is imported.
TERMINAL = ["COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE"]
for variable in (*TERMINAL, "RANK", "SLURM_PROCID", "RAY_ADDRESS"):
    os.environ.pop(variable, None)

# The same examples each time, however slow the machine is.
settings.register_profile(
    "certain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("certain")

Tree = Callable[[dict[str, object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for `shared` carries the mark: `-m "not shared"` leaves them out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


@pytest.fixture(scope="session", autouse=True)
def _no_power_cuts() -> Iterator[None]:
    """No test of this process cuts the power, so nothing has to be on the disk itself; processes that tests
    start do wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses a wrong descriptor as well
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """What a test draws does not hang on which ran before it in the same process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The research data beside the checkout, or wherever ITMFEAT_SHARED says."""
    default = Path(__file__).resolve().parents[2] / "shared"
    root = Path(os.environ.get("ITMFEAT_SHARED") or default)
    if not root.is_dir():
        pytest.skip(f"no research data at {root}: ITMFEAT_SHARED can say where it is")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset, drawn once. Who changes it takes a copy."""
    from itmfeat_extract.corpus import read

    root = tmp_path_factory.mktemp("pictures") / "demo"
    read("demo", root)
    return root


@pytest.fixture(scope="module")
def small_ranges() -> Iterator[None]:
    """Eight images in a range of an extraction."""
    from itmfeat_extract import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "IMAGE_RANGE", 8)
        yield


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Plants files below a fresh folder: text as it is, objects as JSON, None as an empty file."""

    def plant(files: dict[str, object]) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                path.write_text("" if content is None else text, encoding="utf-8")
        return root

    return plant
