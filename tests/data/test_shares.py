"""Mixture weights as counts of 4096."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.data.shares import SLOTS, mixture_shares
from primus.errors import DataError

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1], (4096,)),
        ([1, 1], (2048, 2048)),
        ([1, 1, 1], (1366, 1365, 1365)),  # the odd slot goes to the first of equals
        ([0.7, 0.2, 0.1], (2867, 819, 410)),
        ([70, 20, 10], (2867, 819, 410)),
        ([1e9, 1], (4095, 1)),
        ([1, 1e-12, 1e-12], (4094, 1, 1)),
        ([5, 5, 1e-9, 1e-9, 1e-9], (2047, 2046, 1, 1, 1)),
    ],
)
def test_known_mixtures(weights: list[float], counts: tuple[int, ...]) -> None:
    assert mixture_shares(weights) == counts


@given(WEIGHTS)
def test_counts_sum_to_4096_and_miss_nobody(weights: list[float]) -> None:
    counts = mixture_shares(weights)
    assert sum(counts) == SLOTS
    assert min(counts) >= 1


@given(WEIGHTS)
def test_counts_stay_within_one_of_the_quota_when_no_quota_is_tiny(weights: list[float]) -> None:
    quotas = [SLOTS * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    if min(quotas) >= 1:
        assert all(abs(count - quota) < 1 for count, quota in zip(mixture_shares(weights), quotas, strict=True))


@given(WEIGHTS)
def test_a_larger_weight_never_gets_less(weights: list[float]) -> None:
    ordered = sorted(weights, reverse=True)
    counts = mixture_shares(ordered)
    assert list(counts) == sorted(counts, reverse=True)


@pytest.mark.parametrize("weights", [[], [1] * 4097, [1, 0], [1, -1], [float("inf"), 1], [float("nan")]])
def test_refuses_what_is_no_mixture(weights: list[float]) -> None:
    with pytest.raises(DataError, match="mixture"):
        mixture_shares(weights)
