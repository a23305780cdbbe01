"""Weights of a mixture as counts: how many of every 4096 samples each source gives."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from primus.errors import DataError

SLOTS = 4096


def mixture_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Counts that sum to 4096, at least 1 each, by the method of largest remainders, in exact arithmetic.

    Each source gets the whole part of its quota ``4096 * weight / sum``, but at least 1. Slots left over go one each to
    the largest fractional parts (earlier source first on a tie). When the minimum of 1 gave out too many, they are
    taken back one at a time from whoever exceeds the quota most among sources with more than one (later source first on
    a tie).
    """
    if not 1 <= len(weights) <= SLOTS:
        raise DataError(f"a mixture can hold 1 to {SLOTS} sources, not {len(weights)}", where="data.train")
    if any(not weight > 0 or weight == float("inf") for weight in weights):
        raise DataError(f"mixture weights must be positive and finite: {list(weights)}", where="data.train")
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    quotas = [SLOTS * weight / total for weight in exact]
    counts = [max(1, int(quota)) for quota in quotas]
    left = SLOTS - sum(counts)
    if left > 0:
        by_remainder = sorted(range(len(counts)), key=lambda k: (counts[k] - quotas[k], k))
        for source in by_remainder[:left]:
            counts[source] += 1
    for _ in range(-left):
        most = max((k for k in range(len(counts)) if counts[k] > 1), key=lambda k: (counts[k] - quotas[k], k))
        counts[most] -= 1
    return tuple(counts)
