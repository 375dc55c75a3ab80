"""The batch stream: shared image sides, the same batches in any stack, nothing lost on the way."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from itmfeat import loader
from itmfeat.cache import Gather, open_cache
from itmfeat.errors import UsageError
from itmfeat.loader import Means, Stream, prefetch, whole
from itmfeat.noise import ncr
from itmfeat.pairs import split_pairs


@pytest.fixture
def stream(toy_cache: Path):  # type: ignore[no-untyped-def]
    cache = open_cache(toy_cache)
    pairs = split_pairs(cache.index, "train")
    sources = Gather(cache.open("image")), Gather(cache.open("text"))

    def make(*given: np.ndarray, seed: int = 0) -> Stream:
        return Stream(sources, (pairs.images, pairs.captions), list(given), 32, seed=seed)

    return make, pairs


def test_runs_with_different_noise_share_the_images(stream) -> None:  # type: ignore[no-untyped-def]
    make, pairs = stream
    true = pairs.caption_image
    noises = [true, ncr(true, 0.5, 0), ncr(true, 0.5, 1)]
    together = list(make(*noises).epoch(0))
    for place, given in enumerate(noises):
        for mine, alone in zip(together, make(given).epoch(0), strict=True):
            assert torch.equal(mine.image_ids, alone.image_ids)
            assert torch.equal(mine.captions[place], alone.captions[0])
            assert mine.image.drop_seed == alone.image.drop_seed
            assert torch.equal(mine.image.vectors, alone.image.vectors)
            length = alone.text.vectors.shape[2]
            assert torch.equal(mine.text.vectors[place, :, :length], alone.text.vectors[0])
            # Each caption stands in a slot of the image that it was given.
            assert np.array_equal(given[mine.captions[place]], mine.image_ids.numpy())


def test_an_epoch_shows_each_slot_once(stream) -> None:  # type: ignore[no-untyped-def]
    make, pairs = stream
    batches = list(make(pairs.caption_image).epoch(3))
    seen = torch.cat([batch.captions[0] for batch in batches])
    assert len(batches) == 200 // 32
    assert len(seen.unique()) == len(seen) == 192


def test_every_pair_leaves_none_out(stream) -> None:  # type: ignore[no-untyped-def]
    make, pairs = stream
    batches = list(make(pairs.caption_image).every_pair(3))
    seen = torch.cat([batch.captions[0] for batch in batches])
    assert len(seen) == 224  # 200 and what fills the seventh batch
    assert len(seen.unique()) == 200
    assert all(batch.image.drop_seed is None for batch in batches)
    training = torch.cat([batch.captions[0] for batch in make(pairs.caption_image).epoch(3)])
    assert not torch.equal(seen[:192], training)


def test_epochs_and_seeds_differ_and_repeat(stream) -> None:  # type: ignore[no-untyped-def]
    make, pairs = stream

    def order(epoch: int, seed: int = 0) -> list[int]:
        return [int(i) for b in make(pairs.caption_image, seed=seed).epoch(epoch) for i in b.captions[0]]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


def test_other_numbers_of_captions_cannot_be_stacked(stream) -> None:  # type: ignore[no-untyped-def]
    make, pairs = stream
    with pytest.raises(UsageError, match="cannot be stacked"):
        make(pairs.caption_image, np.roll(pairs.caption_image, 1) * 0)


def test_whole_covers_a_split_in_order(toy_cache: Path) -> None:
    cache = open_cache(toy_cache)
    pairs = split_pairs(cache.index, "test")
    file = cache.open("text")
    sides = list(whole(Gather(file), pairs.captions, 16))
    assert sum(side.vectors.shape[1] for side in sides) == len(pairs.captions)
    last = Gather(file)(torch.tensor([int(pairs.captions[-1])]))
    assert torch.equal(sides[-1].vectors[0, -1, : int(last.lengths)], last.vectors[0])


def test_means_are_the_means(toy_cache: Path) -> None:
    file = open_cache(toy_cache).open("text")
    rows = np.array([7, 250, 12])
    found = Means(file, rows, step=2)(torch.tensor([12, 7]))
    for item, row in enumerate((12, 7)):
        first, last = file.offsets[row], file.offsets[row + 1]
        expected = torch.from_numpy(file.array()[first:last].astype(np.float32)).mean(0)
        torch.testing.assert_close(found.vectors[item, 0], expected)


def test_block_order_takes_every_slot_once_and_keeps_reads_local(
    toy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "BLOCK", 10)
    monkeypatch.setattr(loader, "WINDOW", 3)
    cache = open_cache(toy_cache)
    pairs = split_pairs(cache.index, "train", 5)
    asked: list[list[int]] = []

    class Told(Gather):
        def ahead(self, items: torch.Tensor) -> None:
            asked.append(items.tolist())
            super().ahead(items)

    sources = Told(cache.open("image")), Gather(cache.open("text"))
    rows = pairs.images, pairs.captions
    stream = Stream(sources, rows, [pairs.caption_image], 6, order="block")
    seen = [batch.captions[0].tolist() for batch in stream.epoch(0)]
    flat = [caption for batch in seen for caption in batch]
    assert len(set(flat)) == len(flat) == 198
    windows = [flat[first : first + 30] for first in range(0, 180, 30)]
    assert all(len({caption // 10 for caption in window}) == 3 for window in windows)
    assert sorted(windows[0]) != windows[0]
    assert seen != [batch.captions[0].tolist() for batch in stream.epoch(1)]
    assert asked[0] == sorted({caption // 5 for caption in windows[0]})  # the first window in file order
    assert {row for rows in asked for row in rows} == {caption // 5 for caption in flat}
    full = Stream(sources, rows, [pairs.caption_image], 6)
    for first, second in zip(full.every_pair(3), stream.every_pair(3), strict=True):
        assert first.captions.shape == second.captions.shape


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    threads = set()

    def make(index: int) -> int:
        threads.add(threading.current_thread().name)
        if index == 5:
            raise ValueError("five")
        return index

    assert list(prefetch(make, 4)) == [0, 1, 2, 3]
    assert threading.current_thread().name not in threads
    with pytest.raises(ValueError, match="five"):
        list(prefetch(make, 9))
    assert list(prefetch(make, 0)) == []
