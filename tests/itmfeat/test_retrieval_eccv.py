"""ECCV Caption, CxC and COCO's recalls against the package's own loops, on the ids that it ships."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_features
from processes import call, fails
from torch import Tensor
from torch.nn.functional import normalize

from itmfeat.api import train
from itmfeat.cache import DatasetIndex, FeatureSpec
from itmfeat.cache.index import read_index, write_index
from itmfeat.errors import DataError, MissingPackageError
from itmfeat.pairs import Pairs, split_pairs
from itmfeat.retrieval import Relevance, eccv, evaluate_split
from itmfeat.retrieval.relevance import score

pytest.importorskip("eccv_caption")
IMAGES, CAPTIONS = 5000, 25000


@pytest.fixture(scope="module")
def test() -> eccv.CocoTest:
    return eccv.coco_test(eccv._data())


@pytest.fixture(scope="module")
def metrics() -> Any:
    """The package, which warns that it has no ujson."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics

        return Metrics()


def index_of(
    folder: Path, test: eccv.CocoTest, images: list[int], extra: bool = False, trained: int = 0
) -> DatasetIndex:
    """An index whose test split has these images of COCO's, in this order, `extra` with a sixth caption.

    The first `trained` of them are training images, and the next ones as many for validation.
    """
    owners = np.argsort(np.argsort(test.caption_image, kind="stable"))  # captions stand image by image
    captions = [int(c) for image in images for c in owners[5 * image : 5 * image + 5]]
    rows = np.repeat(np.arange(len(images)), 5)
    ids = test.caption_id[captions]
    if extra:
        rows, ids = np.insert(rows, 5, 0), np.insert(ids, 5, 1)
    strings = {
        "image_id": [str(test.image_id[image]) for image in images],
        "image_file": [f"{image}.jpg" for image in images],
        "caption": [str(caption) for caption in ids],
    }
    columns = {
        "image_split": np.digitize(np.arange(len(images)), [trained, 2 * trained]).astype(np.uint8),
        "caption_id": ids,
        "caption_image": rows,
    }
    write_index(folder / "dataset.h5", "coco", strings, columns)
    return read_index(folder / "dataset.h5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, test: eccv.CocoTest) -> tuple[Pairs, DatasetIndex]:
    """All of the test split, in the order of the package."""
    index = index_of(tmp_path_factory.mktemp("coco"), test, list(range(IMAGES)))
    return split_pairs(index, "test", 5), index


def embeddings(kind: str, test: eccv.CocoTest) -> tuple[Tensor, Tensor]:
    """Images (5000, E) and captions (25000, E): unrelated, near their image, or in crowds that look alike."""
    torch.manual_seed(0)
    owner = torch.from_numpy(test.caption_image)
    image = torch.randn(IMAGES, 24)
    if kind == "crowds":
        image = image[torch.arange(IMAGES) % 200] + 0.4 * image
    text = torch.randn(CAPTIONS, 24)
    if kind != "random":
        text = image[owner] + 0.6 * text
    return normalize(image, dim=1), normalize(text, dim=1)


def ranked(queries: Tensor, gallery: Tensor, k: int, within: Any = None) -> Iterator[Any]:
    """The first k of the gallery for each query by NumPy; positions."""
    for block in torch.split(queries, 500):
        scores = (block @ gallery.T).numpy()
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        yield from np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)


def listed(image: Tensor, text: Tensor, test: eccv.CocoTest, k: int) -> dict[str, dict[int, list[int]]]:
    """What the package takes: ranked ids by the id of the query."""
    i2t = zip(test.image_id.tolist(), ranked(image, text, k), strict=True)
    t2i = zip(test.caption_id.tolist(), ranked(text, image, k), strict=True)
    return {
        "i2t": {key: test.caption_id[ids].tolist() for key, ids in i2t},
        "t2i": {key: test.image_id[ids].tolist() for key, ids in t2i},
    }


def folded(image: Tensor, text: Tensor, test: eccv.CocoTest) -> dict[str, dict[int, list[int]]]:
    """The same for COCO 1K, of which the package reads nothing but the entries of the query's fold."""
    lists: dict[str, dict[int, list[int]]] = {"i2t": {}, "t2i": {}}
    for fold in range(5):
        images, captions = slice(1000 * fold, 1000 * fold + 1000), slice(5000 * fold, 5000 * fold + 5000)
        part = eccv.CocoTest(test.image_id[images], test.caption_id[captions], test.caption_image)
        for way, found in listed(image[images], text[captions], part, 10).items():
            lists[way] |= found
    return lists


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["random", "near", "crowds"])
def test_all_numbers_are_those_of_the_package(
    kind: str, test: eccv.CocoTest, metrics: Any, whole: tuple[Pairs, DatasetIndex]
) -> None:
    image, text = embeddings(kind, test)
    got: Any = evaluate_split(image, text, *whole, protocol="eccv")
    lists = listed(image, text, test, 48)
    wanted = {"5k": metrics.coco_5k_recalls, "cxc": metrics.cxc_recalls, "1k": metrics.coco_1k_recalls}
    ours = {"5k": got, "cxc": got["cxc"], "1k": got["5x1k"]}
    for name, function in wanted.items():
        for k in (1, 5, 10):
            found = function(folded(image, text, test) if name == "1k" else lists, "all", K=k)
            for way in ("i2t", "t2i"):
                assert ours[name][way][f"r{k}"] == pytest.approx(100 * found[way]), (name, way, k)
    for key, both in metrics.eccv_metrics(lists, "all").items():
        for way, value in both.items():
            ours_key = {"eccv_rprecision": "r_precision"}.get(key, key.removeprefix("eccv_"))
            assert got["eccv"][way][ours_key] == pytest.approx(100 * value)
    assert [got["eccv"][way]["queries"] for way in ("i2t", "t2i")] == [1261, 1332]
    assert [got["cxc"][way]["queries"] for way in ("i2t", "t2i")] == [5000, 24972]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_metrics_of_a_list_are_those_of_the_package(metrics: Any) -> None:
    """Small random ground truth, through the functions that the package scores with."""
    from eccv_caption._metrics import compute_eccv_metrics, compute_r_at_k, compute_rprecision

    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(60) for _ in range(30)])
    truth = {query: rng.choice(64, rng.integers(1, 20), replace=False).tolist() for query in range(0, 30, 2)}
    pairs = torch.tensor([(q, i if i < 60 else -i) for q, items in truth.items() for i in items]).T
    got = score(torch.from_numpy(lists), Relevance(pairs[0], pairs[1]), 60)
    ids = dict(enumerate(lists.tolist()))
    found = compute_eccv_metrics(ids, truth)
    assert got["map_at_r"] == pytest.approx(100 * found["eccv_map_at_r"])
    assert got["r_precision"] == pytest.approx(100 * compute_rprecision(ids, truth))
    assert got["r_precision"] == pytest.approx(100 * found["eccv_rprecision"])
    for k, value in ((1, got["r1"]), (5, got["r5"]), (10, got["r10"])):
        assert value == pytest.approx(100 * compute_r_at_k(ids, truth, k))


@pytest.mark.slow
def test_collapsed_embeddings_score_chance(whole: tuple[Pairs, DatasetIndex]) -> None:
    got: Any = evaluate_split(torch.ones(IMAGES, 2), torch.ones(CAPTIONS, 2), *whole, protocol="eccv")
    assert got["protocol"] == "5k"
    assert got["rsum"] == pytest.approx(100 * (1 + 1 + 2) / 5000 + 100 * 16 / 5000)
    assert got["5x1k"]["rsum"] == pytest.approx(2.0)
    for name in ("eccv", "cxc"):
        for way in ("i2t", "t2i"):
            assert all(value < 1 for key, value in got[name][way].items() if key != "queries")


@pytest.mark.slow
def test_another_order_gives_the_same_numbers(
    tmp_path: Path, test: eccv.CocoTest, whole: tuple[Pairs, DatasetIndex]
) -> None:
    image, text = embeddings("near", test)
    image[:500] = image[500:1000]  # ties, which stand in the order of the package
    shuffled = np.random.default_rng(0).permutation(IMAGES)
    index = index_of(tmp_path, test, shuffled.tolist())
    pairs = split_pairs(index, "test", 5)
    place = {int(caption): row for row, caption in enumerate(test.caption_id)}
    rows = torch.tensor([place[int(caption)] for caption in index.caption_id])
    got = evaluate_split(image[shuffled], text[rows], pairs, index, protocol="eccv")
    assert got == evaluate_split(image, text, *whole, protocol="eccv")


@pytest.mark.slow
def test_a_run_on_coco(tmp_path: Path, test: eccv.CocoTest, at: Path) -> None:
    """From a cache with COCO's ids to the printed table, and the same as JSON."""
    # Twenty strangers before the 5,000, for training and validation.
    more = 20
    strangers = np.arange(-more, 0)
    longer = eccv.CocoTest(
        np.concatenate([10**9 + strangers, test.image_id]),
        np.concatenate([10**9 + np.arange(5 * more), test.caption_id]),
        np.concatenate([np.repeat(np.arange(more), 5), test.caption_image + more]),
    )
    cache = tmp_path / "coco"
    index = index_of(cache, longer, list(range(IMAGES + more)), trained=more // 2)
    image, text = embeddings("near", test)
    for kind, name, vectors in (("image", "pixels", image), ("text", "words", text)):
        rows = torch.cat([vectors[: len(vectors) // IMAGES * more], vectors]).numpy()
        spec = FeatureSpec(kind, name, index.digest, np.ones(len(rows), np.int64), rows.shape[1])
        write_features(cache / kind / f"{name}.h5", spec, rows)
    run = train("infonce", cache=cache, epochs=1, batch_size=25, head="mean-linear")
    told = call("eval", run, "--protocol", "eccv")
    assert "test split, protocol 5k: 5000 images, 25000 captions\n" in told.stdout
    assert "of 1332 queries" in told.stdout
    assert "of 24972 queries" in told.stdout
    found = json.loads(call("eval", run, "--protocol", "eccv", "--json").stdout)
    stored = json.loads((run / "results.json").read_text())
    assert {key: found[key] for key in stored} == stored
    fails(3, "--captions 5", "eval", run, "--protocol", "eccv", "--captions", 1)
    fails(
        3, "5k is for the whole test split of 5000 images", "eval", run, "--protocol", "5k", "--captions", 1
    )


def test_a_split_that_is_not_cocos_is_refused(tmp_path: Path, test: eccv.CocoTest) -> None:
    def refused(folder: str, images: list[int], says: str, extra: bool = False) -> None:
        index = index_of(tmp_path / folder, test, images, extra)
        pairs = split_pairs(index, "test")
        sides = torch.ones(len(pairs.images), 2), torch.ones(len(pairs.captions), 2)
        with pytest.raises(DataError, match=says):
            evaluate_split(*sides, pairs, index, protocol="eccv")

    refused("few", [5, 7], "the test split of coco has 10 of them among 10: extract coco")
    refused("missing", list(range(1, IMAGES)), "has 24995 of them among 24995")
    refused("sixth", list(range(IMAGES)), r"has 25000 of them among 25001.*--captions 5", extra=True)


def test_other_ids_are_refused(tmp_path: Path) -> None:
    strings = {"image_id": ["a", "9" * 30], "image_file": ["a", "b"], "caption": ["a", "b"]}
    columns = {
        "image_split": np.full(2, 2, np.uint8),
        "caption_id": np.arange(2),
        "caption_image": np.arange(2),
    }
    write_index(tmp_path / "dataset.h5", "f30k", strings, columns)
    index = read_index(tmp_path / "dataset.h5")
    with pytest.raises(DataError, match="the test split of f30k has 0 of them among 2"):
        evaluate_split(torch.eye(2), torch.eye(2), split_pairs(index, "test"), index, protocol="eccv")


def test_without_the_package_a_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, whole: tuple[Pairs, DatasetIndex]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itmfeat\[eccv\]'"):
        evaluate_split(torch.ones(IMAGES, 2), torch.ones(CAPTIONS, 2), *whole, protocol="eccv")


def test_a_damaged_package_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing or damaged: pip install"):
        eccv.ground_truth(tmp_path, "eccv", eccv.CocoTest(*[np.arange(1)] * 3))
    for content in (None, b"", b"no numbers"):
        if content is not None:
            (tmp_path / "coco_test_ids.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"coco_test_ids\.npy is missing or damaged: pip install"):
            eccv.coco_test(tmp_path)
