"""The order of samples: computed, never stored.

``Permutation`` is a Feistel network over a mixed-radix square just larger than its size, with cycle walking. Together
with ``SampleOrder`` it makes the sample order a pure function of (dataset digest, seed, sample index).

Definition, for other implementations (test vectors are in ``docs/sample-order.md``):

- size N <= 2**62; a = ceil(sqrt(N)), b = ceil(N / a); x is split as (l, r) = divmod(x, b), so l < a and r < b.
- round keys k_0..k_5: the first six little-endian 32-bit words of SHA-256(key).
- six rounds; round i updates l from r when i is even and r from l when it is odd: l = (l + F_i(r, a)) mod a,
  r = (r + F_i(l, b)) mod b.
- F_i(v, m), in 32-bit arithmetic that wraps: h = v + k_i; h ^= h >> 16; h *= 0x7feb352d; h ^= h >> 15;
  h *= 0x846ca68b; the result is (h * m) >> 32 in 64 bits.
- y = l * b + r; while y >= N the rounds are applied to y again. Because a * b - N < a, that is rare.

The integer mix is Chris Wellons' lowbias32 without its last shift, which the multiply-shift reduction makes needless.
The construction is the generalised Feistel cipher of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from primus.data.shares import SLOTS

ROUNDS = 6
MAX_SIZE = 2**62
CHUNK = 16384
"""Indices worked on at a time: large enough that numpy's cost a call vanishes, small enough for the cache."""

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]


class Permutation:
    """A bijection of 0..size-1, chosen by `key`. Costs no memory and can be evaluated anywhere.

    size: at least 1, at most 2**62. key: any bytes.
    """

    def __init__(self, size: int, key: bytes) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"a permutation's size must be in 1..2**62, not {size}")
        self.size = size
        self._left = math.isqrt(size - 1) + 1
        self._right = -(-size // self._left)
        self._keys = np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4")[:ROUNDS].astype(np.uint32)

    def apply(self, indices: npt.ArrayLike) -> Int64Array:
        """The images of `indices` (any shape, each in 0..size-1), as int64 of the same shape."""
        array = np.asarray(indices, dtype=np.int64)
        flat = array.reshape(-1)
        if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= self.size):
            raise IndexError(f"indices must be in 0..{self.size - 1}")
        result = np.empty(flat.shape, dtype=np.int64)
        for start in range(0, flat.size, CHUNK):
            part = self._network(flat[start : start + CHUNK])
            outside = np.flatnonzero(part >= self.size)
            while outside.size:
                part[outside] = self._network(part[outside])
                outside = outside[part[outside] >= self.size]
            result[start : start + CHUNK] = part
        return result.reshape(array.shape)

    def _network(self, x: Int64Array) -> Int64Array:
        high = x // self._right
        left = high.astype(np.uint32)
        right = (x - high * self._right).astype(np.uint32)
        scratch = (np.empty_like(left), np.empty_like(left), np.empty(x.shape, dtype=np.uint64))
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                _round(left, right, key, self._left, scratch)
            else:
                _round(right, left, key, self._right, scratch)
        result = left.astype(np.int64)
        result *= self._right
        result += right
        return result


def _round(
    target: UInt32Array,
    source: UInt32Array,
    key: np.uint32,
    radix: int,
    scratch: tuple[UInt32Array, UInt32Array, npt.NDArray[np.uint64]],
) -> None:
    """target = (target + F(source)) mod radix, in place."""
    mixed, shifted, wide = scratch
    np.add(source, key, out=mixed)
    np.right_shift(mixed, 16, out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    np.multiply(mixed, np.uint32(0x7FEB352D), out=mixed)
    np.right_shift(mixed, 15, out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    np.multiply(mixed, np.uint32(0x846CA68B), out=mixed)
    np.multiply(mixed, np.uint64(radix), out=wide, dtype=np.uint64)
    np.right_shift(wide, np.uint64(32), out=wide)
    np.add(target, wide, out=target, dtype=np.uint32, casting="unsafe")
    # target < 2 * radix <= 2**32 now; below radix the subtraction wraps to something huge: the minimum is the remainder
    np.subtract(target, np.uint32(radix), out=mixed)
    np.minimum(target, mixed, out=target)


def order_key(digest: str, seed: int, *parts: str | int) -> bytes:
    """Key of one permutation: what is permuted (`parts`) within the order of (digest, seed)."""
    return "|".join(["primus-order-1", digest, str(seed), *map(str, parts)]).encode()


class SampleOrder:
    """Which window of which source is sample n, for any n >= 0.

    sizes: windows of each source; shares: slots of each source, summing to 4096 (``mixture_shares``).
    Samples are laid out in blocks of 4096. In block B a permutation keyed by B deals the slots to the sources, source k
    getting shares[k] of them; in slot order they take its ordinals B * shares[k] onwards. Ordinal j of a source with N
    windows is window ``permutation(epoch = j // N)(j mod N)``: every window once before any comes again.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[int], digest: str, seed: int) -> None:
        if len(sizes) != len(shares) or sum(shares) != SLOTS or min(sizes) < 1 or min(shares) < 1:
            raise ValueError(f"need one size >= 1 and one share >= 1 a source, shares summing to {SLOTS}")
        self.sizes = tuple(sizes)
        self.shares = tuple(shares)
        self._digest = digest
        self._seed = seed
        self._owner = np.repeat(np.arange(len(shares), dtype=np.int16), shares)
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def locate(self, first: int, count: int) -> tuple[npt.NDArray[np.int16], Int64Array]:
        """Source (int16) and window (int64) of samples first..first+count-1."""
        sources = np.empty(count, dtype=np.int16)
        windows = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            block, slot = divmod(first + done, SLOTS)
            take = min(count - done, SLOTS - slot)
            block_sources, block_windows = self._block(block)
            sources[done : done + take] = block_sources[slot : slot + take]
            windows[done : done + take] = block_windows[slot : slot + take]
            done += take
        return sources, windows

    def _compute_block(self, block: int) -> tuple[npt.NDArray[np.int16], Int64Array]:
        if len(self.sizes) == 1:
            return np.zeros(SLOTS, dtype=np.int16), self._windows(0, block * SLOTS, SLOTS)
        deal = Permutation(SLOTS, order_key(self._digest, self._seed, "mixture", block))
        sources = self._owner[deal.apply(np.arange(SLOTS))]
        # a stable sort lists the slots source by source, each source's in order, as its ordinals run
        slots = np.argsort(sources, kind="stable")
        windows = np.empty(SLOTS, dtype=np.int64)
        start = 0
        for source, share in enumerate(self.shares):
            windows[slots[start : start + share]] = self._windows(source, block * share, share)
            start += share
        return sources, windows

    def _windows(self, source: int, first: int, count: int) -> Int64Array:
        """Windows of the ordinals first..first+count-1 of one source."""
        size = self.sizes[source]
        if size == 1:
            return np.zeros(count, dtype=np.int64)
        result = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, index = divmod(first + done, size)
            take = min(count - done, size - index)
            permutation = Permutation(size, order_key(self._digest, self._seed, "window", source, epoch))
            result[done : done + take] = permutation.apply(np.arange(index, index + take))
            done += take
        return result
