"""Two curves step by step: what counts as equal, and which lines are worth showing."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.numerics.bands import BANDS, known_band
from primus.numerics.compare import Curve, Pairs, chosen, compare, relative, stretches

NAN, INF = math.nan, math.inf


def curve(losses: dict[int, float], evals: dict[int, tuple[float, int]] | None = None) -> Curve:
    steps = sorted(losses)
    values = array("d", [losses[step] for step in steps])
    return Curve(
        array("q", steps), values, array("d", [1.0] * len(steps)), array("d", [1e-3] * len(steps)), evals or {}
    )


def numbered(*losses: float) -> dict[int, float]:
    return dict(enumerate(losses, 1))


def test_equal_runs_are_within_a_band_of_zero() -> None:
    found = compare(curve(numbered(3, 2, 1)), curve(numbered(3, 2, 1)), 0.0)
    assert found.within
    assert found.first_beyond is None
    assert found.training.largest() == 0
    assert (found.only_a, found.only_b) == ([], [])


def test_the_band_is_inclusive_and_the_first_beyond_is_named() -> None:
    a, b = curve(numbered(4, 4, 4, 4)), curve(numbered(4, 4.5, 3, 4.25))
    assert compare(a, b, 1.0).within
    found = compare(a, b, 0.5)
    assert not found.within
    assert found.first_beyond == 3
    assert list(found.training.difference) == [0, 0.5, -1, 0.25]
    assert found.training.worst() == 2


@pytest.mark.parametrize("pair", [(NAN, 1.0), (1.0, NAN), (NAN, NAN), (INF, INF), (-INF, INF), (INF, 1.0)])
@pytest.mark.parametrize("band", [0.0, 1.0, 1e300])
def test_what_is_not_finite_is_never_equal(pair: tuple[float, float], band: float) -> None:
    left, right = pair
    found = compare(curve(numbered(1, left, 1)), curve(numbered(1, right, 1)), band)
    assert not found.within
    assert found.first_beyond == 2
    assert found.training.worst() == 1
    assert found.training.largest() == INF
    assert found.training.not_finite() == [1]


def test_steps_that_only_one_has_are_named_and_do_not_count() -> None:
    a = curve({1: 1.0, 2: 1.0, 3: 1.0, 7: 1.0, 9: 9.0})
    b = curve({2: 1.0, 3: 1.0, 4: 9.0, 5: 9.0})
    found = compare(a, b, 0.0)
    assert found.within
    assert list(found.training.step) == [2, 3]
    assert found.only_a == [(1, 1), (7, 7), (9, 9)]
    assert found.only_b == [(4, 5)]


def test_without_a_common_step_nothing_is_equal() -> None:
    found = compare(curve({1: 1.0}), curve({2: 1.0}), 1.0)
    assert not found.within
    assert found.training.worst() is None
    assert found.first_beyond is None


def test_evaluations_count_when_they_saw_the_same_amount() -> None:
    losses = numbered(1, 1, 1)
    a = curve(losses, {1: (2.0, 64), 2: (2.0, 64), 3: (2.0, 64)})
    b = curve(losses, {1: (2.0, 64), 2: (2.5, 128), 4: (2.0, 64)})
    found = compare(a, b, 0.1)
    assert found.within
    assert (list(found.evaluation.step), found.incomparable) == ([1], [2])
    worse = compare(a, curve(losses, {3: (2.5, 64)}), 0.1)
    assert not worse.within
    assert worse.first_beyond == 3
    assert not compare(a, curve(losses, {3: (NAN, 64)}), 0.1).within


def test_norms_are_compared_relatively() -> None:
    assert relative(2.0, 4.0) == 0.5
    assert relative(4.0, 2.0) == -0.5
    assert relative(0.0, 0.0) == 0.0
    assert relative(0.0, 1e-30) == 1.0
    assert math.isnan(relative(NAN, 1.0))


def test_stretches() -> None:
    assert stretches([]) == []
    assert stretches([1, 2, 3, 5, 8, 9]) == [(1, 3), (5, 5), (8, 9)]


LOSSES = st.dictionaries(
    st.integers(0, 60), st.floats(allow_nan=True, allow_infinity=True, width=32) | st.floats(0, 12), max_size=40
)
BANDS_TRIED = st.floats(0, 1e3)


@given(LOSSES, LOSSES, BANDS_TRIED)
def test_whatever_the_curves_hold(a: dict[int, float], b: dict[int, float], band: float) -> None:
    found, back = compare(curve(a), curve(b), band), compare(curve(b), curve(a), band)
    both = a.keys() & b.keys()
    assert set(found.training.step) == both
    # who is A decides the signs and nothing else
    assert found.within == back.within
    assert found.first_beyond == back.first_beyond
    assert found.training.worst() == back.training.worst()
    assert (found.only_a, found.only_b) == (back.only_b, back.only_a)
    assert sum(last - first + 1 for first, last in found.only_a) == len(a.keys() - b.keys())
    # the definition, said once more
    assert found.within == (bool(both) and all(abs(b[step] - a[step]) <= band for step in both))
    # a wider band never takes an equality back
    assert not found.within or compare(curve(a), curve(b), band * 2 + 1).within


@given(LOSSES, LOSSES, BANDS_TRIED, st.integers(6, 20))
def test_the_lines_worth_showing(a: dict[int, float], b: dict[int, float], band: float, about: int) -> None:
    pairs = compare(curve(a), curve(b), band).training
    shown = chosen(pairs, band, about)
    assert shown == sorted(set(shown))
    assert len(shown) <= about
    if len(pairs):
        beyond = pairs.beyond(band)
        assert {0, len(pairs) - 1, pairs.worst(), *beyond[:1]} <= set(shown)
    if len(pairs) <= about:
        assert shown == list(range(len(pairs)))


def test_long_runs_are_shown_evenly() -> None:
    pairs = Pairs(range(1000), [1.0] * 1000, [1.0] * 1000)
    shown = chosen(pairs, 0.0)
    assert len(shown) in (11, 12)
    gaps = [b - a for a, b in pairwise(shown)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("precisions", "experts", "band"),
    [
        ({"fp32"}, False, 1e-5),
        ({"fp32"}, True, None),
        ({"bf16"}, False, None),
        ({"fp8"}, False, None),
        ({"fp32", "bf16"}, False, None),
        ({"fp4"}, False, None),
    ],
)
def test_bands_are_known_only_where_they_were_measured(precisions: set[str], experts: bool, band: Any) -> None:
    known, reason = known_band(precisions, experts=experts)
    assert known == band
    assert bool(reason) == (band is None)
    assert BANDS["fp32"] == 1e-5
