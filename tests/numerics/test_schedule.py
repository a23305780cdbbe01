"""The learning rate: worked values, and properties that hold for any schedule."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.config.experiment import Optimizer, Schedule
from primus.numerics.schedule import learning_rate


def optimizer(name: str, warmup: int, min_lr: float = 0.1, stable: int | None = None) -> Optimizer:
    return Optimizer(lr=1.0, min_lr=min_lr, schedule=Schedule(name=name, warmup_steps=warmup, stable_steps=stable))


VECTORS = [
    (
        "cosine",
        4,
        None,
        12,
        [0.25, 0.5, 0.75, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254, 0.1, 0.1],
    ),
    ("linear", 2, None, 6, [0.5, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1, 0.1]),
    ("constant", 2, None, 6, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("wsd", 2, 3, 8, [0.5, 1.0, 1.0, 1.0, 1.0, 0.7, 0.4, 0.1, 0.1]),
    ("wsd", 0, 18, 20, [1.0] * 18 + [0.55, 0.1, 0.1]),
]


@pytest.mark.parametrize(("name", "warmup", "stable", "decay", "expected"), VECTORS)
def test_worked_values(name: str, warmup: int, stable: int | None, decay: int, expected: list[float]) -> None:
    chosen = optimizer(name, warmup, stable=stable)
    assert [learning_rate(step, chosen, decay) for step in range(len(expected))] == pytest.approx(expected, abs=1e-6)


@given(
    name=st.sampled_from(["cosine", "linear", "wsd"]),
    warmup=st.integers(0, 50),
    rest=st.integers(1, 200),
    share=st.floats(0, 0.99),
)
def test_rises_to_the_peak_falls_to_the_floor_and_stays(name: str, warmup: int, rest: int, share: float) -> None:
    decay = warmup + rest
    chosen = optimizer(name, warmup, stable=int(share * rest) if name == "wsd" else None)
    rates = [learning_rate(step, chosen, decay) for step in range(decay + 5)]
    assert min(rates) > 0
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    if warmup:
        assert rates[warmup - 1] == 1.0
    assert all(a >= b for a, b in pairwise(rates[max(0, warmup - 1) :]))
    assert rates[decay - 1 :] == [0.1] * 6
    assert all(math.isfinite(rate) and rate <= 1.0 for rate in rates)
