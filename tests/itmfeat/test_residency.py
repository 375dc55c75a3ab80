"""Where features stay: by what is free, and what is said of it."""

import resource
import subprocess
import sys

import pytest
import torch

from itmfeat import residency
from itmfeat.errors import ItmfeatError, UsageError
from itmfeat.machine import free_memory
from itmfeat.residency import Need, choose

CPU = torch.device("cpu")


def placed(
    monkeypatch: pytest.MonkeyPatch, free: int, wanted: str = "auto"
) -> tuple[dict[str, str], list[str]]:
    """Where 3 GB of images and 1 GB of text stay with so much free memory, and what was said."""
    monkeypatch.setattr(residency, "free_memory", lambda: free)
    said: list[str] = []
    return choose({"image": Need(3 << 30), "text": Need(1 << 30)}, wanted, CPU, said.append), said


def test_auto_takes_memory_as_far_as_half_of_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed(monkeypatch, 10 << 30)[0] == {"image": "ram", "text": "ram"}
    assert placed(monkeypatch, 6 << 30)[0] == {"image": "pages", "text": "ram"}
    assert placed(monkeypatch, 3 << 30)[0] == {"image": "disk", "text": "ram"}
    chosen, said = placed(monkeypatch, 1 << 30)
    assert chosen == {"image": "disk", "text": "disk"}
    assert said == [
        "text features, 1.07 GB, stay on the disk (free: 1.07 GB ram)",
        "image features, 3.22 GB, stay on the disk (free: 1.07 GB ram)",
    ]


def test_what_is_asked_for_is_done_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed(monkeypatch, 100 << 30, "disk")[0] == {"image": "pages", "text": "pages"}
    assert placed(monkeypatch, 4 << 30, "disk")[0] == {"image": "disk", "text": "disk"}
    assert placed(monkeypatch, 5 << 30, "ram")[0] == {"image": "ram", "text": "ram"}
    with pytest.raises(ItmfeatError, match=r"image features take 3\.22 GB and 1\.07 GB are free in memory"):
        placed(monkeypatch, 2 << 30, "ram")
    with pytest.raises(UsageError, match="needs --device cuda"):
        placed(monkeypatch, 5 << 30, "gpu")
    with pytest.raises(UsageError, match="unknown --resident 'gup': did you mean 'gpu'"):
        placed(monkeypatch, 5 << 30, "gup")


def test_means_are_never_read_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "free_memory", lambda: 3 << 30)
    needed = {"image": Need(2 << 30, means=True), "text": Need(5, means=True)}
    assert choose(needed, "auto", CPU) == choose(needed, "disk", CPU) == {"image": "ram", "text": "ram"}


def test_limits_of_the_process_count() -> None:
    free = free_memory()
    assert 0 < free < 1 << 50
    code = "from itmfeat.machine import free_memory; print(free_memory())"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    found = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limited, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 8 << 30
