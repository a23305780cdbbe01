"""The random start: every weight is a pure function of (seed, tensor name, position in the tensor).

A rank draws the values of its own shard and nothing else, whatever the layout, the library or the machine, so the same
experiment starts from the same weights everywhere. No state is carried and no file is needed.

**Distribution.** A sum of twelve uniform 16-bit integers, centred and scaled (Irwin-Hall of order 12): mean 0, variance
``1 - 2**-32``, excess kurtosis -0.1, bounded by ``|z| <= 5.9999``. The bound is an advantage for a start: no outlier
is ever drawn. Unlike a true normal it needs no logarithm and no cosine, whose last bit differs between libraries.

**Formula**, all in unsigned 64-bit arithmetic modulo ``2**64``. The stream's two keys are the little-endian halves of
``blake2b("SEED NAME", digest_size=16)`` in UTF-8. The three words of the value at flat index ``i`` (row-major, in
Hugging Face's tensor of that name) are, for ``j`` in 0, 1, 2::

    x = (3*i + j) * 0x9E3779B97F4A7C15 + key0
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = x ^ key1
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    word = x ^ (x >> 31)

which is SplitMix64's counter and finaliser (Steele, Lea, Flood, 2014) with a second key in the middle, so that two
streams do not repeat each other at a shift. With S the sum of the twelve 16-bit lanes of the three words,

    z = (S - 393210) / 65536                    (exact in float32: |S - 393210| < 2**24)

and a weight is ``float32(std) * z``, one IEEE multiplication in float32.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
CENTRE = 12 * 0xFFFF // 2
WORD = (1 << 64) - 1
BLOCK = 1 << 14
"""Values drawn at a time: four buffers of this many 64-bit words stay in a core's cache."""

LANES = np.uint64(0x0000FFFF0000FFFF)


def keys(seed: int, name: str) -> tuple[int, int]:
    """The two 64-bit keys of the stream of tensor `name`."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def normal(seed: int, name: str, start: int, count: int) -> NDArray[np.float32]:
    """Values ``start .. start + count - 1`` of tensor `name`, float32 [count], of unit variance."""
    out = np.empty(count, np.float32)
    _draw(keys(seed, name), None, start, out)
    return out


def normal_at(seed: int, name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values of tensor `name` at flat `indices` (any shape, any order), float32 of the same shape, of unit variance."""
    out = np.empty(indices.size, np.float32)
    _draw(keys(seed, name), np.ascontiguousarray(indices).reshape(-1).view(np.uint64), 0, out)
    return out.reshape(indices.shape)


def _draw(key: tuple[int, int], indices: NDArray[np.uint64] | None, start: int, out: NDArray[np.float32]) -> None:
    """Fill `out` with the values at `indices`, or at ``start, start + 1, ...`` without them."""
    size = min(BLOCK, out.size)
    counter, x, scratch, total = (np.empty(size, np.uint64) for _ in range(4))
    steps = np.arange(size, dtype=np.uint64) * np.uint64(3 * GAMMA & WORD)
    for first in range(0, out.size, BLOCK):
        n = min(BLOCK, out.size - first)
        c, w, t, s = counter[:n], x[:n], scratch[:n], total[:n]
        if indices is None:
            np.add(steps[:n], np.uint64(((start + first) * 3 * GAMMA + key[0]) & WORD), out=c)
        else:
            np.multiply(indices[first : first + n], np.uint64(3 * GAMMA & WORD), out=c)
            np.add(c, np.uint64(key[0]), out=c)
        s.fill(0)
        for _ in range(3):
            np.right_shift(c, np.uint64(30), out=t)
            np.bitwise_xor(c, t, out=w)
            np.multiply(w, np.uint64(MIX_1), out=w)
            np.bitwise_xor(w, np.uint64(key[1]), out=w)
            np.right_shift(w, np.uint64(27), out=t)
            np.bitwise_xor(w, t, out=w)
            np.multiply(w, np.uint64(MIX_2), out=w)
            np.right_shift(w, np.uint64(31), out=t)
            np.bitwise_xor(w, t, out=w)
            # Two 16-bit lanes are added at a time inside 32-bit halves: twelve times 65535 cannot overflow them.
            np.bitwise_and(w, LANES, out=t)
            np.add(s, t, out=s)
            np.right_shift(w, np.uint64(16), out=w)
            np.bitwise_and(w, LANES, out=w)
            np.add(s, w, out=s)
            np.add(c, np.uint64(GAMMA), out=c)
        np.right_shift(s, np.uint64(32), out=t)
        np.add(s, t, out=s)
        np.bitwise_and(s, np.uint64(0xFFFFFFFF), out=s)
        centred = s.view(np.int64)
        np.subtract(centred, CENTRE, out=centred)
        np.multiply(centred, np.float32(1 / 65536), out=out[first : first + n], casting="unsafe")
