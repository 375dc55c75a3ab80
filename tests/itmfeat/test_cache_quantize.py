"""Smaller features from features: values against plain double precision, and nothing of the test split."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import call, fails

from itmfeat.cache import (
    FeatureFile,
    FeatureSpec,
    FeatureWriter,
    open_cache,
    pca,
    ranges,
    verify,
    write_index,
)
from itmfeat.cache.quantization import quantize_cache
from itmfeat.cache.subset import merge, subset
from itmfeat.errors import DataError, ItmfeatError, UsageError

IMAGES, IMAGE_DIM, TEXT_DIM = 48, 10, 6
SPLITS = np.array([0, 1, 0, 2, 0, 0, 1, 0, 2, 0, 0, 0] * 4, np.uint8)
CAPTIONS = np.arange(IMAGES) % 3 + 1
IMAGE_LENGTHS = np.arange(IMAGES) % 5  # some images have no region
TEXT_LENGTHS = np.arange(CAPTIONS.sum()) % 4 + 1
TRAIN = {"image": SPLITS == 0, "text": np.repeat(SPLITS, CAPTIONS) == 0}


def vectors(kind: str) -> np.ndarray:
    lengths, dim = (IMAGE_LENGTHS, IMAGE_DIM) if kind == "image" else (TEXT_LENGTHS, TEXT_DIM)
    rng = np.random.default_rng(dim)
    mixed = rng.standard_normal((lengths.sum(), dim)) @ rng.standard_normal((dim, dim)) + 3
    return mixed.astype(np.float32)


def make(folder: Path, dtype: str = "float32", **other: np.ndarray) -> Path:
    """Images with boxes and means, texts with a vector of another kind; `other` values take their place."""
    digest = write_index(
        folder / "dataset.h5",
        "toy",
        {
            "image_id": [str(i) for i in range(IMAGES)],
            "image_file": [f"{i}.jpg" for i in range(IMAGES)],
            "caption": [f"caption {i}" for i in range(CAPTIONS.sum())],
        },
        {
            "image_split": SPLITS,
            "caption_id": np.arange(CAPTIONS.sum()),
            "caption_image": np.repeat(np.arange(IMAGES), CAPTIONS),
        },
    )
    rng = np.random.default_rng(5)
    image, text = other.get("image", vectors("image")), other.get("text", vectors("text"))
    spec = FeatureSpec(
        "image", "regions", digest, IMAGE_LENGTHS, IMAGE_DIM, dtype, IMAGE_DIM, boxed=True, range_items=7,
        fingerprint='{"pooled": "mean"}',
    )  # fmt: skip
    boxes = {"boxes": rng.random((len(image), 4)), "scores": rng.random(len(image))}
    fill(folder / "image" / "regions.h5", spec, features=image, pooled=means(image, IMAGE_LENGTHS), **boxes)
    spec = FeatureSpec("text", "words", digest, TEXT_LENGTHS, TEXT_DIM, dtype, 3, range_items=16)
    fill(folder / "text" / "words.h5", spec, features=text, pooled=rng.random((len(TEXT_LENGTHS), 3)))
    return folder


def fill(path: Path, spec: FeatureSpec, **payloads: np.ndarray) -> None:
    with FeatureWriter(path, spec) as writer:
        for part in writer.pending:
            items = writer.items(part)
            span = slice(writer.offsets[items.start], writer.offsets[items.stop])
            whole = slice(items.start, items.stop)
            writer.write(part, **{n: a[whole if n == "pooled" else span] for n, a in payloads.items()})
        writer.finish()


def means(found: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The mean of each item's vectors; zero of none."""
    ends = np.cumsum(lengths)
    parts = [found[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return np.stack([part.mean(0) if len(part) else np.zeros(found.shape[1]) for part in parts])


def payload(file: FeatureFile, name: str = "features") -> np.ndarray:
    return np.asarray(file.array(name))


def values(file: FeatureFile) -> np.ndarray:
    """The vectors that a file stands for, in double precision."""
    found = payload(file).astype(np.float64)
    return found * payload(file, "scales")[:, None] if "scales" in file.extents else found


def oracle(found: np.ndarray, kind: str, dim: int) -> tuple[np.ndarray, float]:
    """All vectors on the axes of the training split's singular value decomposition, and the variance kept."""
    found = found.astype(np.float64)
    lengths = IMAGE_LENGTHS if kind == "image" else TEXT_LENGTHS
    train = found[np.repeat(TRAIN[kind], lengths)]
    _, singular, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    axes = axes[:dim]
    axes *= np.sign(axes[np.arange(dim), np.abs(axes).argmax(1)])[:, None]  # the largest entry is positive
    return (found - train.mean(0)) @ axes.T, float((singular[:dim] ** 2).sum() / (singular**2).sum())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("caches") / "whole")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make(tmp_path / "cache")


def test_int8_values_and_all_else_as_it_was(cache: Path) -> None:
    source = {path: path.read_bytes() for path in cache.rglob("*.h5")}
    made = quantize_cache(cache)
    assert [(one["kind"], one["name"], one["source"]) for one in made] == [
        ("image", "regions@int8", "regions"),
        ("text", "words@int8", "words"),
    ]
    for kind, name in (("image", "regions"), ("text", "words")):
        old, new = open_cache(cache).open(kind, name), open_cache(cache).open(kind, f"{name}@int8")
        for row, vector in enumerate(payload(old)):  # one by one, as the format's page says
            scale = np.float32(np.abs(vector).max()) / np.float32(127)
            assert payload(new, "scales")[row] == scale
            assert (payload(new)[row] == np.rint(vector / scale)).all()
        for extra in old.extents.keys() - {"features"}:
            assert payload(old, extra).tobytes() == payload(new, extra).tobytes()
        assert (old.offsets == new.offsets).all()
        assert new.has_means == (kind == "image")
        for key in ("backbone", "tokens", "range_items", "versions", "kind", "dataset"):
            assert old.attributes[key] == new.attributes[key]
        step = {"source": name, "digest": old.digest, "dtype": "int8"}
        assert new.fingerprint == old.fingerprint | {"quantized": [step]}
        assert pca.projection_of(new) is None
    assert verify(cache) == []
    assert all(path.read_bytes() == content for path, content in source.items())


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_pca_against_double_precision(tmp_path: Path, dtype: str, bound: float) -> None:
    """The source has the dtype; so has the result."""
    cache = make(tmp_path / "cache", dtype)
    for made in quantize_cache(cache, dim=4):
        kind = made["kind"]
        old, new = (open_cache(cache).open(kind, made[key]) for key in ("source", "name"))
        expected, variance = oracle(values(old), kind, 4)
        assert new.attributes["dtype"] == made["dtype"] == dtype
        assert np.abs(values(new) - expected).max() < bound * np.abs(expected).max()
        assert made["pca"]["variance"] == pytest.approx(variance, rel=1e-9)
        assert made["pca"] == new.fingerprint["quantized"][-1]["pca"]
        train = int(TRAIN[kind] @ np.diff(old.offsets))
        assert [made["pca"][key] for key in ("dim", "split", "vectors", "of")] == [4, "train", train, train]
    assert verify(cache) == []


def test_means_stay_means(cache: Path) -> None:
    quantize_cache(cache, dim=4)
    image, text = (
        open_cache(cache).open("image", "regions@pca4"),
        open_cache(cache).open("text", "words@pca4"),
    )
    assert image.has_means
    np.testing.assert_allclose(payload(image, "pooled"), means(payload(image), IMAGE_LENGTHS), atol=1e-5)
    assert not payload(image, "pooled")[IMAGE_LENGTHS == 0].any()
    for extra in ("boxes", "scores"):
        old = payload(open_cache(cache).open("image", "regions"), extra)
        assert (payload(image, extra) == old).all()
    old = payload(open_cache(cache).open("text", "words"), "pooled")  # no mean: in a space of its own
    assert (payload(text, "pooled") == old).all()


def test_new_vectors_are_projected_as_the_stored_ones(tmp_path: Path, cache: Path) -> None:
    quantize_cache(cache, dim=4, dtype="float16")
    parts = [subset(cache, tmp_path / split, split=split) for split in ("train", "val", "test")]
    for path in (cache, *parts, merge(parts, tmp_path / "all")):
        new, old = (open_cache(path).open("image", name) for name in ("regions@pca4-float16", "regions"))
        projection = pca.projection_of(new)
        assert projection is not None
        assert projection.digest == new.fingerprint["quantized"][0]["pca"]["digest"]
        assert (projection(payload(old)).astype(np.float16) == payload(new)).all()
        identity = projection.components @ projection.components.T
        np.testing.assert_allclose(identity, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_only_the_training_split_is_looked_at(tmp_path: Path, kind: str) -> None:
    found, lengths = vectors(kind), IMAGE_LENGTHS if kind == "image" else TEXT_LENGTHS
    train = np.repeat(TRAIN[kind], lengths)
    unseen, seen = found.copy(), found.copy()
    unseen[~train] = 1000 * np.random.default_rng(1).standard_normal(unseen[~train].shape)
    seen[np.flatnonzero(train)[-1]] += 1
    fitted = []
    for name, changed in (("same", found), ("unseen", unseen), ("seen", seen)):
        made = quantize_cache(make(tmp_path / name, **{kind: changed}), dim=3)
        fitted.append(next(one["pca"] for one in made if one["kind"] == kind))
    assert fitted[0] == fitted[1]
    assert fitted[0]["digest"] != fitted[2]["digest"]


def test_a_large_split_is_sampled(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "SAMPLE_BYTES", 40 * 8 * IMAGE_DIM)
    options = {"dim": 4, "text_backbone": "none"}
    (made,) = quantize_cache(cache, **options)  # type: ignore[arg-type]
    train = int(TRAIN["image"] @ IMAGE_LENGTHS)
    assert (made["pca"]["vectors"], made["pca"]["of"]) == (40, train)
    (again,) = quantize_cache(make(tmp_path / "again"), **options)  # type: ignore[arg-type]
    assert again == made


def test_an_interrupted_command_goes_on_with_its_fit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(tmp_path / "other")
    quantize_cache(other, dim=4, dtype="int8")
    plain, calls, fits = ranges.write_at, [], []
    fit = pca.fit

    def stop(descriptor: int, data: memoryview, position: int, path: Path) -> None:
        calls.append(position)
        if len(calls) == 17:
            raise KeyboardInterrupt
        plain(descriptor, data, position, path)

    def counted(file: FeatureFile, index: object, dim: int) -> object:
        fits.append(file.path.stem)
        return fit(file, index, dim)  # type: ignore[arg-type]

    monkeypatch.setattr(ranges, "write_at", stop)
    monkeypatch.setattr(pca, "fit", counted)
    stops = 0
    while True:
        calls.clear()
        try:
            made = quantize_cache(cache, dim=4, dtype="int8")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert fits == ["regions", "words"]
    assert made == quantize_cache(cache, dim=4, dtype="int8")
    files = sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    assert len(files) == 5
    for name in files:
        assert (cache / name).read_bytes() == (other / name).read_bytes()


def test_a_file_that_was_cut_short_at_its_creation_starts_anew(cache: Path) -> None:
    (cache / "image" / "regions@pca4.h5.part").write_bytes(b"\x89HDF")
    quantize_cache(cache, dim=4)
    assert verify(cache) == []


def test_steps_add_up(cache: Path) -> None:
    quantize_cache(cache, dim=4)
    (made,) = quantize_cache(cache, image_backbone="regions@pca4", text_backbone="none")
    assert made["name"] == "regions@pca4-int8"
    assert made["pca"] is None
    projected, both = (open_cache(cache).open("image", f"regions@{name}") for name in ("pca4", "pca4-int8"))
    assert [step["source"] for step in both.fingerprint["quantized"]] == ["regions", "regions@pca4"]
    projection, known = pca.projection_of(both), pca.projection_of(projected)
    assert projection is not None
    assert known is not None
    assert projection.digest == known.digest
    assert both.has_means
    with pytest.raises(UsageError, match="made by a PCA already"):
        quantize_cache(cache, image_backbone="regions@pca4", text_backbone="none", dim=3)
    with pytest.raises(DataError, match=r"regions@pca4-int8\.h5 exists and is something else"):
        quantize_cache(cache, text_backbone="none", dim=4, dtype="int8")


def test_a_changed_source_does_not_pass_for_the_old(cache: Path) -> None:
    quantize_cache(cache)
    make(cache, text=vectors("text") * 2)
    with pytest.raises(DataError, match=r"words@int8\.h5 exists and is something else"):
        quantize_cache(cache)


def test_a_damaged_source_gets_no_new_checksums(cache: Path) -> None:
    path = cache / "text" / "words.h5"
    content = bytearray(path.read_bytes())
    content[FeatureFile(path).extents["features"].offset + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"words\.h5: items 0 to 15 are damaged"):
        quantize_cache(cache)
    assert not list(cache.rglob("*@*"))


@pytest.mark.parametrize(
    ("options", "error", "pattern"),
    [
        ({"dtype": "float64"}, UsageError, "unknown dtype 'float64'"),
        ({"dtype": "float32"}, UsageError, "unknown dtype 'float32'"),
        ({"dim": 0}, UsageError, "--pca must be 1 to 9 for .*regions.h5, not 0"),
        ({"dim": 10}, UsageError, "--pca must be 1 to 9"),
        ({"dim": 6}, UsageError, "--pca must be 1 to 5 for .*words.h5, not 6; .* --text-backbone none"),
        ({"name": "a/b"}, UsageError, "must be a plain name"),
        ({"name": ".h"}, UsageError, "must be a plain name"),
        ({"name": "words"}, UsageError, "is the name of the source"),
        ({"image_backbone": "none", "text_backbone": "none"}, UsageError, "there is nothing to do"),
        ({"image_backbone": "region"}, UsageError, "unknown image backbone .* did you mean 'regions'"),
    ],
)
def test_wrong_options(whole: Path, options: dict[str, str], error: type[ItmfeatError], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        quantize_cache(whole, **options)  # type: ignore[arg-type]
    assert len(list(whole.rglob("*"))) == 5


def test_nothing_to_gain_and_too_little_to_fit(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache", "int8")
    for dtype in (None, "int8", "float16"):
        with pytest.raises(UsageError, match=r"holds int8, so .* would not make it smaller"):
            quantize_cache(cache, dtype=dtype)
    part = subset(cache, tmp_path / "part", split="train", images=2)
    with pytest.raises(UsageError, match=r"--pca 9 needs more than 9 image vectors .* which has [0-9];"):
        quantize_cache(part, dim=9, text_backbone="none")
    rest = subset(cache, tmp_path / "rest", split="test")
    with pytest.raises(UsageError, match="which has 0"):
        quantize_cache(rest, dim=2)
    with pytest.raises(DataError, match="are equal"):
        quantize_cache(make(tmp_path / "equal", text=np.zeros_like(vectors("text"))), dim=2)


def test_unfinished_and_missing_sources(tmp_path: Path, cache: Path) -> None:
    (cache / "image" / "more.h5.part").touch()
    with pytest.raises(DataError, match="more is not finished"):
        quantize_cache(cache, image_backbone="more")
    with pytest.raises(DataError, match="is no cache"):
        quantize_cache(tmp_path / "nothing")
    (cache / "text" / "words.h5").unlink()
    assert [made["name"] for made in quantize_cache(cache)] == ["regions@int8"]  # a cache of images alone


def test_the_command_and_training_on_what_it_made(toy_cache: Path, at: Path) -> None:
    assert call("cache", "subset", "toy", "--cache", toy_cache, "--images", 60).exit_code == 0
    done = call("cache", "quantize", "--cache", "toy")
    assert done.exit_code == 0, done.output
    assert "image grid@int8: 240 vectors x 12 int8, " in done.stdout
    assert "--image-backbone grid@int8 --text-backbone words@int8" in done.stderr
    both = json.loads(call("cache", "quantize", "--cache", "toy", "--pca", 6, "--json").stdout)
    assert [(one["name"], one["dim"], one["dtype"]) for one in both] == [
        ("grid@pca6", 6, "float16"),
        ("words@pca6", 6, "float16"),
    ]
    assert json.loads(call("cache", "verify", "toy", "--json").stdout) == {"damaged": []}
    train = ["train", "--loss", "infonce", "--cache", "toy", "--head", "max-linear"]
    small = ["--epochs", "3", "--batch-size", "32", "--set", "head.dim=64", "--json"]
    fails(2, "choose --image-backbone: toy holds grid, grid@int8, grid@pca6", *train, *small)
    sums = []
    for end in ("", "@int8", "@pca6"):
        chosen = ["--image-backbone", f"grid{end}", "--text-backbone", f"words{end}"]
        sums.append(json.loads(call(*train, *chosen, *small).stdout)["rsum"])
    assert sums[1] == pytest.approx(sums[0], abs=40)  # ten test images: a rank is worth ten points
    fails(2, "unknown dtype 'int4'", "cache", "quantize", "--cache", "toy", "--dtype", "int4")
    fails(3, "is no cache", "cache", "quantize", "--cache", "nowhere")
