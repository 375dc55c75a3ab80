"""Ranks against a stable argsort, metrics against truth tables, protocols against their definition."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmfeat.errors import DataError, UsageError
from itmfeat.retrieval import Ranks, evaluate, precision, ranking, ranks, results, search


def brute_force(scores: Tensor, caption_image: Tensor) -> Ranks:
    """Ranks from the whole matrix (N, C), one query at a time."""
    i2t, t2i = [], []
    for image, row in enumerate(scores):
        order = row.argsort(descending=True, stable=True)
        i2t.append(int((caption_image[order] == image).nonzero()[0]))
    for caption, column in enumerate(scores.T):
        order = column.argsort(descending=True, stable=True)
        t2i.append(int((order == caption_image[caption]).nonzero()[0]))
    return Ranks(torch.tensor(i2t), torch.tensor(t2i))


def assert_ranks(image: Tensor, text: Tensor, caption_image: Tensor) -> None:
    """Compare with brute force in float64, which is exact for the small integers used here."""
    got = ranks(image, text, caption_image)
    want = brute_force(image.double() @ text.double().T, caption_image)
    assert got.i2t.dtype == got.t2i.dtype == torch.int64
    assert torch.equal(got.i2t, want.i2t)
    assert torch.equal(got.t2i, want.t2i)


def ragged(images: int, most: int = 7) -> Tensor:
    """Whose each caption is (C,): one to `most` captions an image, in shuffled order."""
    count = torch.randint(1, most + 1, (images,))
    owner = torch.arange(images).repeat_interleave(count)
    return owner[torch.randperm(len(owner))]


def integers(rows: int, dim: int, largest: int) -> Tensor:
    """Whole numbers (rows, dim), whose products are exact in any order of summation."""
    return torch.randint(-largest, largest + 1, (rows, dim)).float()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that no size in these tests is a multiple of, so that both passes multiply."""
    monkeypatch.setattr(ranking, "HELD_SCORES", 1500)
    monkeypatch.setattr(ranking, "COMPARED_SCORES", 400)


# --- ranks ---


@pytest.mark.parametrize("largest", [1, 3, 1000])  # many ties, some, next to none
@pytest.mark.parametrize("images", [1, 2, 37, 101])
def test_ranks_equal_brute_force(images: int, largest: int) -> None:
    owner = ragged(images)
    assert_ranks(integers(images, 5, largest), integers(len(owner), 5, largest), owner)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("largest", [1, 1000])
@pytest.mark.parametrize("images", [2, 37, 101])
def test_ranks_equal_brute_force_in_blocks(images: int, largest: int) -> None:
    owner = ragged(images)
    assert_ranks(integers(images, 5, largest), integers(len(owner), 5, largest), owner)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("largest", [0, 1, 1000])
def test_folds_are_ranked_as_if_they_stood_alone(
    largest: int, blocks: bool, request: pytest.FixtureRequest
) -> None:
    if blocks:
        request.getfixturevalue("small_blocks")
    owner = ragged(101)
    image, text = integers(101, 5, largest), integers(len(owner), 5, largest)
    whole, folds = ranking.folded_ranks(image, text, owner, 20)
    assert torch.equal(whole.t2i, ranks(image, text, owner).t2i)
    assert len(folds) == 6
    for number, fold in enumerate(folds):
        mine = owner // 20 == number
        part = slice(20 * number, 20 * number + 20)
        want = ranks(image[part], text[mine], owner[mine] - 20 * number)
        assert torch.equal(fold.i2t, want.i2t)
        assert torch.equal(fold.t2i, want.t2i)


@settings(max_examples=60)
@given(st.data())
def test_ranks_equal_brute_force_on_anything(data: st.DataObject) -> None:
    images = data.draw(st.integers(1, 6))
    dim = data.draw(st.integers(1, 3))
    extra = data.draw(st.lists(st.integers(0, images - 1), max_size=8))
    owner = data.draw(st.permutations([*range(images), *extra]))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    image = data.draw(st.lists(vector, min_size=images, max_size=images))
    text = data.draw(st.lists(vector, min_size=len(owner), max_size=len(owner)))
    assert_ranks(torch.tensor(image).float(), torch.tensor(text).float(), torch.tensor(owner))


def test_ranks_equal_the_float_matrix_itself() -> None:
    owner = ragged(150)
    image, text = torch.randn(150, 64), torch.randn(len(owner), 64)
    got, want = ranks(image, text, owner), brute_force(image @ text.T, owner)
    assert torch.equal(got.i2t, want.i2t)
    assert torch.equal(got.t2i, want.t2i)


@pytest.mark.parametrize("shape", [(997, 4985, 513), (3, 4985, 513), (5, 7, 1000), (64, 64, 1)])
def test_constant_embeddings_rank_by_index(shape: tuple[int, int, int]) -> None:
    images, captions, dim = shape
    vector = torch.randn(1, dim)
    owner = torch.arange(captions) * images // captions
    got = ranks(vector.repeat(images, 1), vector.repeat(captions, 1), owner)
    assert torch.equal(got.t2i, owner)
    assert torch.equal(got.i2t, torch.searchsorted(owner, torch.arange(images)))


@pytest.mark.parametrize(("images", "captions"), [(3, 301), (301, 2000)])
def test_a_collapsed_side_alone_ranks_by_index(images: int, captions: int) -> None:
    """One side constant, in sizes where a plain product was seen to round copies differently."""
    owner = torch.arange(captions) % images
    vector, text = torch.randn(1, 513), torch.randn(captions, 513)
    assert torch.equal(ranks(vector.repeat(images, 1), text, owner).t2i, owner)
    image, vector = torch.randn(images, 513), torch.randn(1, 513)
    got = ranks(image, vector.repeat(captions, 1), owner)
    assert torch.equal(got.i2t, torch.arange(images))


@pytest.mark.parametrize("blocks", [False, True])
def test_duplicated_vectors_tie(blocks: bool, request: pytest.FixtureRequest) -> None:
    if blocks:
        request.getfixturevalue("small_blocks")
    owner = ragged(53)
    image, text = torch.randn(53, 129), torch.randn(len(owner), 129)
    image_copy, text_copy = torch.randint(20, (53,)), torch.randint(70, (len(owner),))
    scores = (image.double() @ text.double().T)[image_copy][:, text_copy]
    got, want = ranks(image[image_copy], text[text_copy], owner), brute_force(scores, owner)
    assert torch.equal(got.i2t, want.i2t)
    assert torch.equal(got.t2i, want.t2i)


def test_copies_are_found_whatever_the_sign_of_zero() -> None:
    vectors = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0], [math.nan, 1.0], [math.nan, 1.0]])
    distinct, which = ranking._distinct(precision.float32(vectors, torch.device("cpu")))
    assert len(distinct) == 3
    assert torch.equal(distinct[which].nan_to_num(9), vectors.nan_to_num(9))


def test_a_diverged_head_ranks_last() -> None:
    owner = torch.arange(50) // 5
    image, text = torch.randn(10, 8), torch.randn(50, 8)
    nan = torch.full_like
    got = ranks(nan(image, math.nan), nan(text, math.nan), owner)
    assert (got.i2t == 49).all()
    assert (got.t2i == 9).all()
    got = ranks(nan(image, math.nan), text, owner)
    assert (got.i2t == 49).all()
    assert (got.t2i == 9).all()


def test_nan_counts_as_ahead_and_never_as_the_best() -> None:
    image = torch.eye(3)
    text = torch.eye(3)[[0, 0, 1, 2]]
    owner = torch.tensor([0, 0, 1, 2])
    text[0] = math.nan  # the other caption of image 0 is perfect, and still stands behind it
    got = ranks(image, text, owner)
    assert got.i2t.tolist() == [1, 1, 1]
    assert got.t2i.tolist() == [2, 0, 0, 0]
    text[1] = math.nan
    assert ranks(image, text, owner).i2t.tolist() == [3, 2, 2]


def test_half_precision_is_ranked_in_float32() -> None:
    image, text = torch.randn(40, 16).bfloat16(), torch.randn(40, 16).bfloat16()
    owner = torch.arange(40)
    assert_ranks(image.float(), text.float(), owner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ranks(image, text, owner)
    assert torch.equal(got.i2t, ranks(image.float(), text.float(), owner).i2t)


def test_embeddings_that_require_gradients_are_ranked() -> None:
    image = torch.eye(2, requires_grad=True)
    assert not ranks(image, torch.eye(2), torch.arange(2)).i2t.any()
    assert search(image, torch.eye(2), 1)[1].tolist() == [[0], [1]]


@pytest.fixture
def matmul_settings() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("matmul_settings")
def test_lower_matmul_precision_is_set_aside_and_put_back() -> None:
    owner = ragged(150)
    image, text = torch.randn(150, 64), torch.randn(len(owner), 64)
    want = ranks(image, text, owner)
    torch.set_float32_matmul_precision("medium")
    with precision.full_precision(image.device):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
    got = ranks(image, text, owner)
    assert torch.equal(got.t2i, want.t2i)
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    ranks(torch.eye(3), torch.eye(3), torch.arange(3))
    assert torch.get_num_threads() == before


def test_the_held_matrix_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []
    product = torch.Tensor.__matmul__

    def recorded(left: Tensor, right: Tensor) -> Tensor:
        products.append(tuple(left.shape))
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", recorded)
    owner = torch.arange(40) // 4
    image, text = torch.randn(10, 3), torch.randn(40, 3)
    ranks(image, text, owner)
    assert products == [(10, 3)]
    products.clear()
    monkeypatch.setattr(ranking, "HELD_SCORES", 150)
    ranks(image, text, owner)
    assert products == [(4, 3), (4, 3), (2, 3)] * 2


@pytest.mark.parametrize(
    ("owner", "says"),
    [
        ([0, 0, 1], "1 of 3 images have no caption"),
        ([0, 1], "3 text embeddings do not fit 2 captions"),
        ([0, 1, 3], "outside the 3"),
        ([0, 1, -1], "outside the 3"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(owner: list[int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        ranks(torch.eye(3), torch.eye(3), torch.tensor(owner))


def test_nothing_to_rank_is_refused() -> None:
    with pytest.raises(DataError):
        ranks(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


# --- metrics ---


def test_a_truth_table_with_ties_by_hand() -> None:
    # image 0: captions 0 and 2; image 1: caption 1; image 2: captions 3 and 4
    owner = torch.tensor([0, 1, 0, 2, 2])
    scores = torch.tensor([[5.0, 9, 7, 7, 1], [3, 3, 3, 4, 3], [2, 2, 2, 2, 2]])
    # row 0: 9, then caption 2 before 3 (both 7) -> rank 1.  row 1: 4, then 0, 1 -> rank 2.
    # row 2: all tie, 0 1 2 stand before 3 -> rank 3.
    # columns: 5 3 2 -> 0; 9 3 2, image 1 -> 1; 7 3 2 -> 0; 7 4 2, image 2 -> 2; 1 3 2 -> 1
    got = ranks(torch.eye(3), scores.T, owner)
    assert got.i2t.tolist() == [1, 2, 3]
    assert got.t2i.tolist() == [0, 1, 0, 2, 1]
    result = results(got, "full", "val")
    assert result["i2t"] == {"r1": 0.0, "r5": 100.0, "r10": 100.0, "medr": 3.0, "meanr": 3.0}
    assert result["t2i"] == {"r1": 40.0, "r5": 100.0, "r10": 100.0, "medr": 2.0, "meanr": 1.8}
    assert result["rsum"] == 440.0
    assert [result[key] for key in ("protocol", "split", "images", "captions")] == [
        "full",
        "val",
        3,
        5,
    ]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_metrics_equal_their_definition(rank: list[int]) -> None:
    got = results(Ranks(torch.tensor(rank), torch.tensor([0])))["i2t"]
    array = np.array(rank)
    assert got["medr"] == np.floor(np.median(array)) + 1
    assert got["meanr"] == pytest.approx(array.mean() + 1)
    for key, k in (("r1", 1), ("r5", 5), ("r10", 10)):
        assert got[key] == pytest.approx(100 * np.mean(array < k))  # type: ignore[literal-required]


def test_results_are_plain_numbers_under_the_promised_keys() -> None:
    result = evaluate(torch.eye(4), torch.eye(4), torch.arange(4), split="val")
    assert list(result) == ["protocol", "split", "images", "captions", "i2t", "t2i", "rsum"]
    assert list(result["i2t"]) == ["r1", "r5", "r10", "medr", "meanr"]
    assert {type(value) for value in result["t2i"].values()} == {float}
    assert type(result["rsum"]) is float
    assert result["rsum"] == 600.0


# --- protocols ---


def constant(images: int, captions: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A collapsed head: images (N, E), captions (C, E), whose each caption is (C,)."""
    owner = torch.arange(captions) * images // captions
    return torch.ones(images, dim), torch.ones(captions, dim), owner


def test_a_constant_head_scores_chance() -> None:
    result = evaluate(*constant(1000, 5000))
    assert result["protocol"] == "1k"
    assert result["rsum"] == pytest.approx(2.0)
    assert result["i2t"]["r10"] == pytest.approx(0.2)  # images 0 and 1 own the first ten captions
    assert result["t2i"]["r10"] == pytest.approx(1.0)


def test_a_diverged_head_scores_nothing() -> None:
    image, text, owner = constant(1000, 5000)
    assert evaluate(image * math.nan, text * math.nan, owner)["rsum"] == 0.0


def test_five_folds_are_the_mean_of_five_evaluations() -> None:
    owner = torch.cat([torch.arange(5000), torch.randint(5000, (2500,))])
    owner = owner[torch.randperm(7500)]
    image = torch.randn(5000, 8)
    text = image[owner] + torch.randn(7500, 8)
    both = evaluate(image, text, owner)
    folds = []
    for fold in range(5):
        mine = owner // 1000 == fold
        part = slice(1000 * fold, 1000 * fold + 1000)
        folds.append(evaluate(image[part], text[mine], owner[mine] % 1000, "1k"))
    got = both["5x1k"]
    assert both["protocol"] == "5k"
    assert (got["protocol"], got["images"], got["captions"]) == ("5x1k", 5000, 7500)
    for way in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10", "medr", "meanr"):
            mean = sum(fold[way][key] for fold in folds) / 5
            assert got[way][key] == pytest.approx(mean)
    assert got["rsum"] == pytest.approx(sum(fold["rsum"] for fold in folds) / 5)
    assert evaluate(image, text, owner, "5x1k") == got
    del both["5x1k"]
    assert evaluate(image, text, owner, "5k") == both


@pytest.mark.parametrize("protocol", ["1k", "5k", "5x1k"])
def test_a_protocol_refuses_another_number_of_images(protocol: str) -> None:
    with pytest.raises(DataError, match=f"protocol {protocol} needs exactly .* the val split has 7"):
        evaluate(*constant(7, 35), protocol=protocol, split="val")


def test_full_takes_any_number_and_auto_falls_back_to_it() -> None:
    assert evaluate(*constant(7, 35))["protocol"] == "full"
    assert evaluate(*constant(1000, 1000), protocol="full")["protocol"] == "full"


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean '5x1k'"):
        evaluate(*constant(7, 35), protocol="5x1")
