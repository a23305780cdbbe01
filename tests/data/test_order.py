"""The sample order: a bijection, equal everywhere, epochs and mixtures as promised."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.data.order import MAX_SIZE, Permutation, SampleOrder, order_key
from primus.data.shares import SLOTS, mixture_shares

# published in docs/sample-order.md: (size, key, indices, images)
VECTORS = [
    (1, b"primus", [0], [0]),
    (10, b"primus", list(range(10)), [2, 6, 5, 9, 4, 3, 0, 7, 1, 8]),
    (4096, b"primus", [0, 1, 2, 3, 4095], [2516, 1473, 751, 2195, 1150]),
    (1_000_003, b"primus", [0, 1, 2, 500_000, 1_000_002], [215_560, 150_010, 591_861, 395_130, 181_386]),
    (
        10**12,
        b"primus",
        [0, 1, 2, 10**11, 10**12 - 1],
        [582_861_659_383, 890_050_268_660, 696_055_703_978, 854_965_565_668, 469_886_777_874],
    ),
    (
        2**62,
        b"",
        [0, 1, 2**61, 2**62 - 1],
        [1_390_230_326_086_715_369, 614_491_295_629_699_624, 2_590_060_406_687_696_710, 2_750_981_046_553_672_042],
    ),
]


def plain(size: int, key: bytes, index: int) -> int:
    """The definition in the module's docstring, in plain Python integers."""
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)
    digest = hashlib.sha256(key).digest()
    keys = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(6)]

    def mix(value: int, round_key: int, modulus: int) -> int:
        h = (value + round_key) % 2**32
        h ^= h >> 16
        h = h * 0x7FEB352D % 2**32
        h ^= h >> 15
        h = h * 0x846CA68B % 2**32
        return (h * modulus) >> 32

    while True:
        left, right = divmod(index, right_size)
        for number, round_key in enumerate(keys):
            if number % 2 == 0:
                left = (left + mix(right, round_key, left_size)) % left_size
            else:
                right = (right + mix(left, round_key, right_size)) % right_size
        index = left * right_size + right
        if index < size:
            return index


@pytest.mark.parametrize(("size", "key", "indices", "images"), VECTORS)
def test_published_vectors(size: int, key: bytes, indices: list[int], images: list[int]) -> None:
    assert Permutation(size, key).apply(indices).tolist() == images
    assert [plain(size, key, index) for index in indices] == images


@pytest.mark.parametrize("size", [*range(1, 130), 1000, 4095, 4096, 4097, 99_991])
def test_every_index_has_its_own_image(size: int) -> None:
    images = Permutation(size, b"some key").apply(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, MAX_SIZE), st.binary(max_size=40), st.data())
def test_equals_the_definition_at_any_size(size: int, key: bytes, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    images = Permutation(size, key).apply(indices)
    assert images.tolist() == [plain(size, key, index) for index in indices]


def test_batches_larger_than_a_chunk_and_of_any_shape() -> None:
    permutation = Permutation(10**9, b"k")
    indices = np.arange(50_000).reshape(100, 500)
    images = permutation.apply(indices)
    assert images.shape == indices.shape
    assert images.dtype == np.int64
    assert images[77, 3] == permutation.apply([77 * 500 + 3])[0]


def test_places_are_uniform_over_keys() -> None:
    """Where index 3 of 7 lands, over 3500 keys: chi-square with 6 degrees of freedom; 99.99 % quantile 27.9."""
    landed = Counter(int(Permutation(7, f"key {n}".encode()).apply([3])[0]) for n in range(3500))
    assert sum((landed[place] - 500) ** 2 / 500 for place in range(7)) < 27.9


def test_neighbours_part() -> None:
    """Neighbouring indices land as far apart as random ones would: a third of the size on average."""
    size = 10**6
    images = Permutation(size, b"k").apply(np.arange(100_000))
    assert np.abs(np.diff(images)).mean() == pytest.approx(size / 3, rel=0.02)
    assert np.corrcoef(np.arange(100_000), images)[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("bad", [[-1], [10], [0, 10**6]])
def test_refuses_indices_outside(bad: list[int]) -> None:
    with pytest.raises(IndexError, match=r"0\.\.9"):
        Permutation(10, b"k").apply(bad)


@pytest.mark.parametrize("size", [0, -5, MAX_SIZE + 1])
def test_refuses_sizes_outside(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        Permutation(size, b"k")


def locate_plainly(sizes: list[int], shares: list[int], digest: str, seed: int, n: int) -> tuple[int, int]:
    """Sample n from the definition, walking its block slot by slot."""
    block, slot = divmod(n, SLOTS)
    owner_of = [source for source, share in enumerate(shares) for _ in range(share)]
    if len(sizes) == 1:
        owner, rank = 0, slot
    else:
        deal = Permutation(SLOTS, order_key(digest, seed, "mixture", block)).apply(np.arange(SLOTS))
        owner = owner_of[deal[slot]]
        rank = sum(owner_of[image] == owner for image in deal[:slot])
    epoch, index = divmod(block * shares[owner] + rank, sizes[owner])
    return owner, plain(sizes[owner], order_key(digest, seed, "window", owner, epoch), index)


@pytest.mark.parametrize(
    ("sizes", "shares"), [([1000], [4096]), ([1], [4096]), ([50_000, 7, 3000], [3000, 1000, 96]), ([5, 9], [4095, 1])]
)
def test_order_equals_the_definition(sizes: list[int], shares: list[int]) -> None:
    order = SampleOrder(sizes, shares, "digest", 7)
    for first, count in ((0, 40), (4090, 12), (10**9, 5), (10**12 + 4095, 2)):
        sources, windows = order.locate(first, count)
        expected = [locate_plainly(sizes, shares, "digest", 7, n) for n in range(first, first + count)]
        assert list(zip(sources.tolist(), windows.tolist(), strict=True)) == expected


def test_each_epoch_has_every_window_once_and_its_own_order() -> None:
    order = SampleOrder([500], [4096], "d", 1)
    epochs = [order.locate(500 * epoch, 500)[1].tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(500)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_mixture_counts_are_exact_in_every_block_and_epochs_are_per_source() -> None:
    shares = mixture_shares([0.7, 0.2, 0.1])
    order = SampleOrder([1000, 300, 50], shares, "d", 1)
    for block in (0, 1, 12345):
        sources, _ = order.locate(block * SLOTS, SLOTS)
        assert np.bincount(sources).tolist() == list(shares)
    sources, windows = order.locate(0, 4 * SLOTS)
    for source, size in enumerate((1000, 300, 50)):
        mine = windows[sources == source].tolist()
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_any_sample_can_be_asked_for_directly() -> None:
    sizes, shares = [10_000, 300], list(mixture_shares([0.5, 0.5]))
    whole = SampleOrder(sizes, shares, "d", 1).locate(0, 20_000)
    fresh = SampleOrder(sizes, shares, "d", 1)
    for first, count in ((19_990, 10), (4095, 2), (0, 1), (8192, 4096)):
        sources, windows = fresh.locate(first, count)
        assert np.array_equal(sources, whole[0][first : first + count])
        assert np.array_equal(windows, whole[1][first : first + count])


@pytest.mark.parametrize("change", [{"digest": "other"}, {"seed": 2}])
def test_order_depends_on_digest_and_seed(change: dict[str, object]) -> None:
    base = {"digest": "d", "seed": 1}
    first = SampleOrder([10_000], [4096], **base).locate(0, 100)[1]
    other = SampleOrder([10_000], [4096], **{**base, **change}).locate(0, 100)[1]  # type: ignore[arg-type]
    assert not np.array_equal(first, other)
