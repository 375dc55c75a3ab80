"""Runs compared: what is paired, what is refused, what the verdict may say, and the command as typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import call, fails

import itmfeat
from itmfeat import api, retrieval
from itmfeat.api import rank_tensors
from itmfeat.comparison import verdict
from itmfeat.errors import DataError, UsageError
from itmfeat.runs import Run

Pick = Callable[[str, int], Path]
FEW = {"resamples": 100, "flips": 100}


@pytest.fixture(scope="module")
def trained(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two losses."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"epochs": 4, "batch_size": 32, "lr": 1e-2, "head": "mean-linear", "head.dim": 8}
    itmfeat.sweep(loss=["infonce", "triplet"], seed=range(3), cache=toy_cache, runs=folder, **settings)
    return folder


@pytest.fixture
def pick(trained: Path, tmp_path: Path) -> Pick:
    """A copy of the runs in a folder of the test's own, by loss and seed."""
    shutil.copytree(trained, tmp_path / "runs")

    def found(loss: str, seed: int) -> Path:
        (path,) = (tmp_path / "runs").glob(f"*-{loss}-*-s{seed}-*")
        return path

    return found


def alone(run: Path, name: str) -> Path:
    """A copy of a run in a folder with no other seeds."""
    return Path(shutil.copytree(run, run.parents[1] / name / run.name))


def change(run: Path, section: str, **values: Any) -> Path:
    config = json.loads((run / "config.json").read_text())
    config[section] |= values
    (run / "config.json").write_text(json.dumps(config))
    return run


def forget(run: Path, cache: str | None = None) -> Path:
    """A run as it was made before ranks were kept; with a cache that is gone."""
    (run / retrieval.RANKS_FILE).unlink()
    return lose(run, cache) if cache else run


def lose(run: Path, cache: str = "/gone") -> Path:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"cache": cache}))
    return run


def test_a_run_keeps_its_ranks(pick: Pick) -> None:
    run = Run(pick("infonce", 0))
    kept = run.read_tensors(retrieval.RANKS_FILE)
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        "i2t": (10,),
        "t2i": (50,),
        "caption_image": (50,),
        "images": (10,),
        "captions": (50,),
    }
    results = retrieval.results(retrieval.Ranks(kept["i2t"], kept["t2i"]))
    assert results | {"dropped": 0} == run.read("results.json")
    forget(run.path)
    computed = rank_tensors(run, device="cpu")
    assert all((computed[name] == tensor).all() for name, tensor in kept.items())


def test_compare_one_run_a_side(pick: Pick) -> None:
    a, b = pick("infonce", 0), pick("triplet", 0)
    found = itmfeat.compare(a, str(b), **FEW)
    assert (found["protocol"], found["split"], found["images"], found["captions"]) == ("full", "test", 10, 50)
    assert (found["a"]["seeds"], found["a"]["seeds_beside"], found["b"]["seeds_beside"]) == ([0], 2, 2)
    assert found["differ"] == {"loss.name": ["infonce", "triplet"]}
    for side, run in (("a", a), ("b", b)):
        results = json.loads((run / "results.json").read_text())
        assert found["metrics"]["rsum"][side] == pytest.approx(results["rsum"])
        assert found["metrics"]["t2i_medr"][side] == results["t2i"]["medr"]
    ranks = [Run(run).read_tensors(retrieval.RANKS_FILE)["t2i"].numpy() for run in (a, b)]
    entry = found["metrics"]["t2i_r5"]
    assert entry["won"] == int(((ranks[0] < 5) & (ranks[1] >= 5)).sum())
    assert entry["lost"] == int(((ranks[0] >= 5) & (ranks[1] < 5)).sum())
    assert entry["difference"] == pytest.approx(2 * (entry["won"] - entry["lost"]))
    assert entry["images"]["interval"][0] <= entry["difference"] <= entry["images"]["interval"][1]
    assert entry["images"]["p_holm"] >= entry["images"]["p"]
    assert "p_holm" not in found["metrics"]["rsum"]["images"]
    assert "p" not in found["metrics"]["t2i_medr"]["images"]
    assert found["verdict"]["p"] == found["metrics"]["rsum"]["seeds"]["p"]
    assert json.loads(json.dumps(found)) == found
    back = itmfeat.compare(b, a, **FEW)["metrics"]["rsum"]
    assert back["difference"] == -found["metrics"]["rsum"]["difference"]
    assert back["seeds"]["p"] == pytest.approx(found["metrics"]["rsum"]["seeds"]["p"])


def test_compare_several_seeds(pick: Pick) -> None:
    sides = [[pick(loss, seed) for seed in (0, 1, 2)] for loss in ("infonce", "triplet")]
    given = itmfeat.compare(*sides, **FEW)
    beside = itmfeat.compare(sides[0][0], sides[1][0], all_seeds=True, **FEW)
    assert given == beside
    assert given["a"]["seeds"] == [0, 1, 2]
    mean = np.mean([Run(run).read("results.json")["i2t"]["meanr"] for run in sides[0]])
    assert given["metrics"]["i2t_meanr"]["a"] == pytest.approx(mean)
    folder = sides[0][0].parents[1] / "one"
    for run in sides[0]:
        alone(run, "one")
    assert itmfeat.compare(folder, sides[1], **FEW)["metrics"] == given["metrics"]


def test_without_another_seed_the_verdict_is_open_at_most(pick: Pick) -> None:
    found = itmfeat.compare(alone(pick("infonce", 0), "x"), alone(pick("triplet", 0), "y"), **FEW)
    assert all("seeds" not in entry for entry in found["metrics"].values())
    assert found["verdict"]["significant"] in (None, False)
    sure = {"difference": -9.8, "images": {"p": 0.001, "deviation": 3.0}}
    assert verdict("rsum", sure) == {
        "metric": "rsum",
        "better": None,
        "significant": None,
        "p": 0.001,
        "tolerated": pytest.approx(np.sqrt((25 - 9) / 2)),
    }
    assert verdict("rsum", sure | {"images": {"p": 0.2, "deviation": 9.0}})["significant"] is False
    assert verdict("rsum", sure | {"seeds": {"p": 0.01}})["better"] == "b"
    assert verdict("rsum", sure | {"seeds": {"p": 0.06}})["significant"] is False


def test_two_seeds_alone_are_never_called_different(pick: Pick) -> None:
    one, other = alone(pick("infonce", 0), "x"), alone(pick("infonce", 1), "y")
    found = itmfeat.compare(one, other, **FEW)
    assert found["differ"] == {}
    assert found["verdict"]["significant"] is False


def test_queries_won_and_lost(pick: Pick) -> None:
    a, b = pick("infonce", 0), pick("triplet", 0)
    found = itmfeat.compare(a, b, listed=50, metric="t2i_r5", **FEW)
    entry = found["metrics"]["t2i_r5"]
    won = [row for row in found["listed"] if row["outcome"] == "won"]
    assert (len(won), len(found["listed"])) == (entry["won"], entry["won"] + entry["lost"])
    assert all(row["query"].startswith("caption 2") or row["query"] == "caption 300" for row in won)
    assert all(row["rank_a"] <= 5 < row["rank_b"] for row in won)
    notes: list[str] = []
    for run in (a, b):
        lose(run)
    both = itmfeat.compare(a, b, listed=1, note=notes.append, **FEW)["listed"]
    assert {row["metric"] for row in both} <= {"i2t_r1", "t2i_r1"}
    assert notes[0].startswith("queries are listed by number alone")


def test_runs_made_before_ranks_were_kept(pick: Pick, toy_cache: Path) -> None:
    runs = [pick("infonce", 0), pick("triplet", 0)]
    wanted = itmfeat.compare(*runs, **FEW)
    forget(runs[0])
    assert itmfeat.compare(*runs, **FEW) == wanted
    lose(runs[0])
    with pytest.raises(DataError, match="its cache /gone is gone: say with --cache"):
        itmfeat.compare(*runs, **FEW)
    assert itmfeat.compare(*runs, cache=toy_cache, **FEW) == wanted
    forget(pick("triplet", 1), "/gone")
    notes: list[str] = []
    kept = itmfeat.compare(pick("infonce", 1), runs[1], note=notes.append, **FEW)
    assert kept["b"]["seeds_beside"] == 1
    assert any("2 further seeds keep no ranks" in note for note in notes)  # of infonce 0 and triplet 1


def test_wrong_requests_are_one_sentence(pick: Pick) -> None:
    a, b = pick("infonce", 0), pick("triplet", 0)
    fails(2, "unknown metric 'r1': .*i2t_r1", "compare", a, b, "--metric", "r1")
    fails(2, "unknown protocol", "compare", a, b, "--protocol", "2k")
    fails(3, "protocol 5x1k needs exactly 5000", "compare", a, b, "--protocol", "5x1k")
    fails(2, "give two runs", "compare", a)
    fails(2, "give two runs", "compare", a, b, a)
    fails(2, "give two runs", "compare", a, "vs")
    fails(2, "stands twice", "compare", a, a)
    fails(2, "stand on one side, but differ", "compare", a, b, "vs", pick("triplet", 1))
    fails(3, "is no run folder and holds none", "compare", a, a.parent / "none")
    fails(2, "at least 100 resamples", "compare", a, b, "--bootstrap", "-5")
    (pick("triplet", 2) / "results.json").unlink()
    fails(3, "is not finished", "compare", a, pick("triplet", 2))


def test_other_queries_cannot_be_paired(pick: Pick) -> None:
    a, b = pick("infonce", 0), alone(pick("triplet", 0), "x")
    change(b, "data", dataset_digest="0" * 64, dataset="other")
    with pytest.raises(DataError, match=r"different datasets \(toy, other"):
        itmfeat.compare(a, b, **FEW)
    c = alone(pick("triplet", 0), "y")
    kept = Run(c).read_tensors(retrieval.RANKS_FILE)
    kept["captions"] = kept["captions"] + 1
    Run(c).write_tensors(retrieval.RANKS_FILE, kept)
    with pytest.raises(DataError, match="rank different captions"):
        itmfeat.compare(a, c, **FEW)


def test_the_command(pick: Pick) -> None:
    a, b = pick("infonce", 0), pick("triplet", 0)
    shown = call("compare", a, b, "--list", "2", "--bootstrap", "100")
    assert shown.exit_code == 0, shown.output
    assert "they differ in loss.name infonce and triplet" in shown.stdout
    assert "over images and seeds" in shown.stdout
    assert "seeds known: 3 and 3" in shown.stdout
    assert "all with one order of batches" in shown.stdout
    assert "verdict on rSum: " in shown.stdout
    assert "t2i R@1 won: rank A 1" in shown.stdout
    again = call("compare", a, pick("infonce", 1), "vs", b, pick("triplet", 1), "--json")
    assert json.loads(again.stdout)["a"]["seeds"] == [0, 1]


def test_undecided_says_what_would_decide(pick: Pick, monkeypatch: pytest.MonkeyPatch) -> None:
    from itmfeat.comparison import metrics

    a, b = alone(pick("infonce", 0), "x"), alone(pick("triplet", 0), "y")
    monkeypatch.setattr(metrics, "sign_flip", lambda difference, flips, seed: np.full(7, 0.001))
    assert "undecided: these two trained models differ" in call("compare", a, b).stdout


def test_eval_with_intervals(pick: Pick, tmp_path: Path) -> None:
    run = pick("infonce", 0)
    plain = json.loads(call("eval", run, "--json").stdout)
    found = json.loads(call("eval", run, "--bootstrap", "200", "--json").stdout)
    interval = found.pop("interval")
    assert found == plain
    assert interval["i2t"]["r1"][0] <= found["i2t"]["r1"] <= interval["i2t"]["r1"][1]
    assert (interval["resamples"], interval["level"]) == (200, 95)
    assert "95 % intervals, protocol full: 200 resamples" in call("eval", run, "--bootstrap", "200").stdout
    val = itmfeat.evaluate(run, "val", bootstrap=100)
    assert val["split"] == "val"
    assert set(val["interval"]["t2i"]) == {"r1", "r5", "r10", "medr", "meanr"}
    forget(run)
    assert itmfeat.evaluate(run, bootstrap=200)["interval"] == interval
    without = lose(pick("infonce", 1))
    assert "interval" in itmfeat.evaluate(without, bootstrap=100)  # its ranks need no features
    with pytest.raises(UsageError, match="--bootstrap takes"):
        itmfeat.evaluate(run, bootstrap=-1)


def test_eval_with_intervals_under_a_named_protocol(pick: Pick) -> None:
    run = Run(pick("infonce", 0))
    fails(2, "unknown protocol 'i2t'", "eval", run.path, "--bootstrap", 100, "--protocol", "i2t")
    results = run.read("results.json")
    fold = {key: value for key, value in results.items() if key != "dropped"} | {"protocol": "5x1k"}
    run.write("results.json", results | {"5x1k": fold})
    held = api._held(run, "5x1k")
    assert held is not None
    assert held[0] == fold | {"dropped": 0}


def test_a_part_of_a_split_takes_no_protocol_of_a_fixed_size(pick: Pick) -> None:
    a, b = pick("infonce", 0), pick("triplet", 0)
    part = {"protocol": "subset", "standard": {"images": 1000, "captions": 5000}}
    Run(b).write("results.json", Run(b).read("results.json") | part)
    fails(3, "1k is for the whole test split of 1000 images", "compare", a, b, "--protocol", "1k")
    fails(2, "unknown protocol 'subset'", "compare", a, b, "--protocol", "subset")
    for protocol in ("auto", "full"):
        assert itmfeat.compare(a, b, protocol=protocol, **FEW)["protocol"] == "subset"


def test_all_seeds_of_one_configuration_are_no_two_sides(pick: Pick) -> None:
    runs = pick("infonce", 0), pick("infonce", 1)
    fails(2, "both are of one configuration, so leave out --all-seeds", "compare", *runs, "--all-seeds")
    apart = [alone(run, name) for run, name in zip(runs, "xy", strict=True)]
    assert itmfeat.compare(*apart, all_seeds=True, **FEW)["differ"] == {}


def test_a_cache_of_another_dataset_leaves_numbers(pick: Pick) -> None:
    runs = [change(pick(loss, 0), "data", dataset_digest="0" * 64) for loss in ("infonce", "triplet")]
    notes: list[str] = []
    (first, *_) = itmfeat.compare(*runs, listed=1, metric="t2i_r1", note=notes.append, **FEW)["listed"]
    assert first["query"].startswith("caption ")
    assert "holds another dataset" in notes[0]
