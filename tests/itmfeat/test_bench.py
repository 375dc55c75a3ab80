"""`itmfeat bench` measures what it says, beside the limit of each."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import call

from itmfeat.bench import Effort, gather, measure, verdict
from itmfeat.errors import DataError
from itmfeat.features import open_features

SMALL = Effort(rounds=2, batches=3, steps=2)


def test_everything_is_measured(toy_cache: Path) -> None:
    said: list[str] = []
    found = measure(open_features(toy_cache), batch_size=8, device="cpu", effort=SMALL, note=said.append)
    json.dumps(found)
    speeds = found["gather"]
    assert speeds["items"] == 60
    assert speeds["batch_mb"] == pytest.approx(8 * 4 * 12 * 2 / 1e6)
    assert speeds["of_memory"] == pytest.approx(speeds["memory"]["ms"] / speeds["cache"]["ms"])
    assert speeds["over_h5py"] == pytest.approx(speeds["h5py"]["ms"] / speeds["cache"]["ms"])
    assert found["step"]["regions"]["steps"] == 200 // 8
    assert (found["evaluation"]["images"], found["evaluation"]["captions"]) == (10, 50)
    assert len(found["verdict"]) == 2
    assert len(said) == 4


def test_ragged_items_are_measured_too(toy_cache: Path) -> None:
    found = gather(open_features(toy_cache).text, 8, SMALL)
    assert found["items"] == 300
    assert all(found[name]["ms"] > 0 for name in ("cache", "memory", "h5py"))


def test_a_sample_that_is_too_small_is_refused(toy_cache: Path) -> None:
    few = Effort(sample=7 * 4 * 12 * 2)
    with pytest.raises(DataError, match=r"7 items of .* fit in memory; choose a smaller --batch-size"):
        gather(open_features(toy_cache).image, 8, few)


def test_the_verdict_names_the_bound() -> None:
    gathered = {"cache": {"ms": 3.0}}
    assert "bound by reading" in verdict("pooled", gathered, {"cache_ms": 3.0, "memory_ms": 1.0})
    assert "bound by the computation" in verdict("pooled", gathered, {"cache_ms": 1.05, "memory_ms": 1.0})


def test_the_command_prints_json_alone(toy_cache: Path) -> None:
    asked = ["bench", "--cache", str(toy_cache), "--batch-size", "4"]
    found = json.loads(call(*asked, "--json").stdout)
    assert np.isfinite(found["gather"]["of_memory"])
    refused = call("bench", "--cache", toy_cache, "--batch-size", 900)
    assert refused.exit_code == 3
    assert refused.stderr.endswith("fit in memory; choose a smaller --batch-size\n")
