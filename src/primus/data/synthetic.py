"""Generated tokens for speed tests: uniform over the vocabulary, the same on every machine, no file behind them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from primus.data.reader import Batch


class SyntheticReader:
    """Token i of sample n is a hash of (seed, part, n * (seq_length + 1) + i), scaled to the vocabulary.

    The hash is the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014) on a Weyl sequence.
    """

    VALIDATION_SAMPLES = 1 << 16

    def __init__(self, seq_length: int, vocab_size: int, seed: int, part: str, length: int | None) -> None:
        self.length = length
        self._seq_length = seq_length
        self._vocab_size = vocab_size
        self._key = int.from_bytes(hashlib.sha256(f"primus-synthetic-1|{seed}|{part}".encode()).digest()[:8], "little")

    def read(self, first: int, count: int) -> Batch:
        """Samples first..first+count-1, int64 arrays [count, seq_length]."""
        from primus.data.reader import Batch

        if first < 0 or (self.length is not None and first + count > self.length):
            raise IndexError(f"samples {first}..{first + count - 1} of {self.length}")
        width = self._seq_length + 1
        tokens = self._tokens(first * width, count * width).reshape(count, width)
        positions = np.tile(np.arange(self._seq_length, dtype=np.int64), (count, 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], positions)

    def _tokens(self, start: int, count: int) -> npt.NDArray[np.int64]:
        mask = (1 << 64) - 1
        # Python's integers wrap by hand here; inside the arrays uint64 wraps by itself
        offset = np.uint64((self._key + start * 0x9E3779B97F4A7C15) & mask)
        state = np.arange(count, dtype=np.uint64)
        state *= np.uint64(0x9E3779B97F4A7C15)
        state += offset
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state ^= state >> np.uint64(shift)
            state *= np.uint64(factor)
        state >>= np.uint64(32)
        state *= np.uint64(self._vocab_size)
        state >>= np.uint64(32)
        return state.astype(np.int64)
