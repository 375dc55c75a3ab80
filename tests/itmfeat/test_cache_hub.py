"""Push and pull against a local stand-in of the hub: the library's own requests, real HTTP, real files."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_features
from hub import Hub
from huggingface_hub import close_session
from processes import HANG, call, fails, wait_until

from itmfeat.cache import FeatureSpec, find_cache, open_cache, write_index
from itmfeat.cache import hub as ours
from itmfeat.cache.card import DATASETS
from itmfeat.cache.hub import pull, push
from itmfeat.errors import DataError, ItmfeatError

REPO = "someone/toy"

# The library's own call of its HTTP client, when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and a client that is logged in to it. The library reads most variables only once."""
    with Hub(tmp_path / "store") as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        files = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield made
    close_session()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def small(folder: Path, name: str = "flickr8k", **fingerprints: dict[str, str]) -> Path:
    """Three images with two captions each, and a feature file for each fingerprint."""
    digest = write_index(
        folder / "dataset.h5",
        name,
        {
            "image_id": list("abc"),
            "image_file": ["a.jpg", "b.jpg", "c.jpg"],
            "caption": [f"caption {i}" for i in range(6)],
        },
        {
            "image_split": np.array([0, 1, 2], np.uint8),
            "caption_id": np.arange(6),
            "caption_image": np.arange(6) // 2,
        },
    )
    for backbone, fingerprint in (fingerprints or {"grid": {"licence": "MIT"}}).items():
        lengths = np.full(3, 2)
        spec = FeatureSpec("image", backbone, digest, lengths, 4, fingerprint=json.dumps(fingerprint))
        write_features(folder / "image" / f"{backbone}.h5", spec, np.random.default_rng(0).random((6, 4)))
    return folder


def test_round_trip_gives_the_same_bytes(hub: Hub, toy_cache: Path, at: Path) -> None:
    shutil.copytree(toy_cache, "mine")
    Path("mine/notes.txt").write_text("of the owner")
    Path("mine/image/grid.txt").write_text("too")
    done = call("cache", "push", REPO, "--cache", "mine", "--private")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{hub.url}/datasets/{REPO}/commit/")
    assert "terms of the dataset toy are not known" in done.stderr
    there = hub.read(REPO)
    assert sorted(there) == [".gitattributes", "README.md", "dataset.h5", "image/grid.h5", "text/words.h5"]
    assert hub.repositories[REPO].private
    hub.make(REPO, there | {"image/secret.txt": b"x", "other.h5": b"x"}, private=True)

    done = call("cache", "pull", REPO, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == "caches/toy"
    assert contents(at / "caches/toy") == contents(toy_cache)
    assert [path.name for path in (at / "caches").iterdir()] == ["toy"]
    assert not any(path.is_symlink() for path in (at / "caches").rglob("*"))


@pytest.mark.slow
def test_the_variables_of_the_environment_hold_and_a_killed_pull_goes_on(
    hub: Hub, toy_cache: Path, at: Path
) -> None:
    """In processes of their own. The library writes 10 MB at once, so the file is larger."""
    shutil.copytree(toy_cache, "mine")
    digest = open_cache(Path("mine")).index.digest
    spec = FeatureSpec("image", "large", digest, np.full(60, 4), 24_000)
    write_features(Path("mine/image/large.h5"), spec, np.random.default_rng(1).random((240, 24_000)))
    push(Path("mine"), REPO)
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_reader", "HF_HOME": "home"}
    hub.repositories[REPO].private = True

    def parts() -> list[Path]:
        return list((at / "caches").glob("**/large.h5.part"))

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from itmfeat.cli import main; main()", "cache", "pull", REPO]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=os.environ | variables, **pipes)

    hub.stall = 11_000_000
    with start() as killed:
        assert hub.stalled.wait(HANG)
        wait_until(lambda: any(file.stat().st_size for file in parts()), "it writes something")
        killed.kill()
    (part,) = parts()
    got = part.stat().st_size
    with pytest.raises(DataError, match="no cache in"):
        find_cache(None)
    hub.stall, hub.log = None, []
    with start() as again:
        _, said = again.communicate(timeout=HANG)
    assert again.returncode == 0, said
    assert contents(at / "caches/toy") == contents(at / "mine")
    large = [entry for entry in hub.log if entry[0] == "GET" and entry[2]]
    assert {entry[2] for entry in large} == {f"bytes={got}-"}
    fetched = [entry for entry in hub.log if entry[1].startswith("/large/")]
    assert len(fetched) == 2  # what was behind `large` in order, and its end; never the index again


def test_pushing_again_uploads_nothing_twice_and_new_features_are_added(hub: Hub, at: Path) -> None:
    cache = small(at / "mine")
    push(cache, REPO, revision="v2")
    assert hub.repositories[REPO].files("v2").keys() > {"README.md", "image/grid.h5"}
    assert ".gitattributes" in hub.read(REPO)
    assert "README.md" not in hub.read(REPO)
    first = pull(REPO, at / "pulled", revision="v2")
    commits = len(hub.repositories[REPO].commits)
    hub.log.clear()
    push(cache, REPO, revision="v2")
    assert [entry for entry in hub.log if entry[0] == "PUT"] == []
    assert len(hub.repositories[REPO].commits) == commits
    small(cache, grid={"licence": "MIT"}, other={"licence": "MIT"})
    push(cache, REPO, revision="v2")
    assert len([entry for entry in hub.log if entry[0] == "PUT"]) == 1
    kept = first.joinpath("image/grid.h5").stat()
    assert pull(REPO, at / "pulled", revision="v2") == first
    assert contents(first) == contents(cache)
    assert first.joinpath("image/grid.h5").stat() == kept
    told: list[str] = []
    left = at / ".pull-someone--toy@0000"
    left.mkdir()
    assert pull(REPO, first, revision="v2", note=told.append) == first
    left.rmdir()
    assert told[0].startswith(f"{left} is left of a pull of another commit")
    assert told[1:] == [f"{first} holds all of {REPO} already"]
    shutil.rmtree(cache / "image")
    push(small(cache), REPO, revision="v2", note=told.append)
    assert any("keeps image/other.h5" in text for text in told)
    assert [path.name for path in at.iterdir() if path.name.startswith(".pull")] == []


def test_damage_is_refused_on_both_sides(hub: Hub, at: Path) -> None:
    cache = small(at / "mine")
    push(cache, REPO)
    there = hub.read(REPO)
    spoilt = bytearray(there["image/grid.h5"])
    spoilt[open_cache(cache).open("image").extents["features"].offset] ^= 1
    hub.make(REPO, there | {"image/grid.h5": bytes(spoilt)})
    fails(
        3,
        "nothing of someone/toy was taken, for image/grid.h5: items 0 to 2 are damaged; pull",
        "cache",
        "pull",
        REPO,
    )
    hub.make(REPO, there | {"dataset.h5": b"no index"})
    fails(3, "was taken, for dataset.h5 is damaged or no file", "cache", "pull", REPO)
    other = small(at / "other", name="coco")
    hub.make(REPO, there | {"dataset.h5": (other / "dataset.h5").read_bytes()})
    fails(3, "was taken, for image/grid.h5 belongs to another dataset", "cache", "pull", REPO)
    assert list((at / "caches").iterdir()) == []

    (cache / "image" / "grid.h5").write_bytes(spoilt)
    before = dict(hub.repositories)
    fails(3, "items 0 to 2 are damaged", "cache", "push", "someone/new", "--cache", cache)
    (cache / "image" / "more.h5.part").touch()
    fails(3, "not finished", "cache", "push", "someone/new", "--cache", cache)
    shutil.rmtree(cache / "image")
    fails(3, "no features", "cache", "push", "someone/new", "--cache", cache)
    assert hub.repositories == before


def test_another_cache_is_never_overwritten(hub: Hub, at: Path) -> None:
    push(small(at / "mine"), REPO)
    small(Path("caches/flickr8k"), name="flickr8k", grid={"weights": "other"})
    small(Path("caches/coco"), name="coco")
    Path("caches/files").mkdir()
    Path("caches/files/x").touch()
    before = contents(at / "caches")
    fails(3, "grid.h5 is another file", "cache", "pull", REPO)
    fails(3, "holds another dataset; name another", "cache", "pull", REPO, "--cache", "caches/coco")
    fails(3, "is there and no cache", "cache", "pull", REPO, "--cache", "caches/files")
    assert contents(at / "caches") == before
    fails(3, "another dataset.h5", "cache", "push", REPO, "--cache", "caches/coco")
    fails(2, "exists and is public", "cache", "push", REPO, "--cache", "mine", "--private")
    Path("caches/empty").mkdir()
    assert contents(pull(REPO, Path("caches/empty"))) == contents(at / "mine")


def test_no_path_of_a_stranger_leads_out(hub: Hub, at: Path) -> None:
    there = contents(small(at / "mine", name="../../evil"))
    paths = ["../dataset.h5", "image/../../x.h5", "image/../x.h5", "image/a/b.h5", "image/.x.h5", "/x.h5"]
    paths += ["image/x\\..\\y.h5", "image/..h5", "text/x.h5.part", "image/x.h5\n", "image/x\x1b.h5"]
    hub.make(REPO, there | dict.fromkeys(paths, b"x"))
    fails(3, "dataset called '../../evil'; name a folder", "cache", "pull", REPO)
    assert contents(pull(REPO, Path("here"))) == there
    assert {path.name for path in at.iterdir()} == {"mine", "here", "caches", "store"}


def test_what_the_hub_refuses_is_one_sentence(hub: Hub, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small(at / "caches/mine")
    push(cache, REPO)
    hub.make("someone/empty", {"README.md": b"x"})
    hub.make("someone/hidden", {}, private=True)
    fails(3, "no dataset repository someone/none", "cache", "pull", "someone/none")
    fails(3, "has no revision v9", "cache", "pull", REPO, "--revision", "v9")
    fails(3, "holds no cache of itmfeat", "cache", "pull", "someone/empty")
    fails(2, "no OWNER/NAME", "cache", "pull", "a/b/c")
    fails(2, "no OWNER/NAME", "cache", "push", "a b")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    fails(1, "your token gives no right", "cache", "push", "someone/other")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    fails(1, "does not know you; log in with `hf auth login`", "cache", "push", "someone/other")
    monkeypatch.delenv("HF_TOKEN")
    fails(1, "does not know you", "cache", "push", "someone/other")
    fails(3, "no dataset repository someone/hidden .* log in", "cache", "pull", "someone/hidden")
    assert pull(REPO, at / "anonymous") == at / "anonymous"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    fails(1, r"cannot reach http://127.0.0.1:9 \(.*\); check", "cache", "pull", REPO)
    fails(1, "cannot reach", "cache", "push", REPO)
    assert not list((at / "caches").glob(".pull*"))


def test_too_little_room_and_too_large_files(hub: Hub, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small(at / "mine")
    push(cache, REPO)
    usage = shutil.disk_usage(at)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(ItmfeatError, match=r"lacks room for 0\.0 GB"):
            pull(REPO, at / "x")
    monkeypatch.setattr(ours, "LIMIT", 9000)
    with pytest.raises(DataError, match="too large to be pulled"):
        pull(REPO, at / "x")
    assert any("too large for `cache pull`" in text for text in ours.pack(cache, REPO).notes)


def test_the_card_names_what_is_there_and_its_terms(at: Path) -> None:
    known = {"licence": "MIT", "source": "openai/clip", "weights": "ab" * 32}
    limited = {"licence": "CC-BY-NC-4.0", "source": "some|where\n"}
    cache = small(at / "mine", name="coco", clip=known, limited=limited, imported={"weights": "unknown"})
    parcel = ours.pack(cache, REPO, revision="v2")
    _, front, text = parcel.card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["license"], facts["size_categories"], facts["viewer"]) == ("other", ["n<1K"], False)
    assert "configs" not in facts
    assert f"itmfeat cache pull {REPO} --revision v2" in text
    assert f"`{open_cache(cache).index.digest}`" in text
    assert "| test | 1 | 2 |" in text
    assert "the captions are CC BY 4.0" in text
    assert "- Weights of clip: MIT.\n" in text
    assert "- Weights of limited: CC-BY-NC-4.0. **Non-commercial use alone.**" in text
    assert "- Weights of imported: **the licence is not known**" in text
    assert f"`{'ab' * 6}`" in text
    assert "| some/where |" in text
    assert [note.split(" are ")[0].split(" is ")[0] for note in parcel.notes] == [
        "the licence of the weights of imported",
        "the weights of limited",
    ]


def test_a_dry_run_prints_card_and_files_and_asks_nobody(hub: Hub, at: Path) -> None:
    cache = small(at / "mine")
    done = call("cache", "push", REPO, "--cache", cache, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("---\n")
    assert "MB  image/grid.h5" in done.stdout
    found = json.loads(call("cache", "push", REPO, "--cache", cache, "--dry-run", "--json").stdout)
    assert found["files"]["image/grid.h5"] == (cache / "image/grid.h5").stat().st_size
    assert hub.log == []


def test_terms_are_those_of_the_page_on_datasets() -> None:
    page = (Path(__file__).parents[2] / "data" / "README.md").read_text()
    words = " ".join(page.split())
    for name, known in DATASETS.items():
        assert known.link in words
        assert known.paper in words
        assert f"| `{name}` |" in page or known is DATASETS["flickr30k"]
    for part in known_terms():
        assert part in words
    assert set(DATASETS) >= {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}


def known_terms() -> list[str]:
    return [
        "non-commercial research and education; the photographs belong to their photographers",
        "Creative Commons Attribution-ShareAlike",
        "CC BY 4.0",
    ]
