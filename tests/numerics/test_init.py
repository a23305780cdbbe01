"""The generator of the random start: published vectors, independence of the way it is read, and its statistics."""

import numpy as np
import pytest

from primus.numerics.init import GAMMA, MIX_1, MIX_2, WORD, keys, normal, normal_at

COUNT = 400_000


def by_hand(seed: int, name: str, index: int) -> float:
    """The documented formula in Python's own integers."""
    first, second = keys(seed, name)
    total = 0
    for word in range(3):
        x = ((3 * index + word) * GAMMA + first) & WORD
        x = ((x ^ (x >> 30)) * MIX_1) & WORD
        x ^= second
        x = ((x ^ (x >> 27)) * MIX_2) & WORD
        x ^= x >> 31
        total += sum((x >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
    return (total - 393210) / 65536


# Published: another implementation is right when it gives exactly these.
VECTORS = {
    (0, "lm_head.weight"): [2297, -51606, 14531, 58166, -1669],
    (1234, "model.embed_tokens.weight"): [-47426, -62293, -22573, -86206, -101590],
    (2**40, "model.layers.0.self_attn.q_proj.weight"): [-12364, 70977, -44555, -48489, 23631],
}


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case: tuple[int, str]) -> None:
    indices = np.array([0, 1, 2, 1000003, 2**33 + 7])
    assert (normal_at(*case, indices) * 65536).astype(np.int64).tolist() == VECTORS[case]


def test_equals_the_documented_formula() -> None:
    values = normal(7, "model.norm.weight", 0, 500)
    assert values.dtype == np.float32
    assert values.tolist() == [by_hand(7, "model.norm.weight", index) for index in range(500)]
    far = 10**13
    assert normal(7, "x", far, 3).tolist() == [by_hand(7, "x", far + index) for index in range(3)]


def test_does_not_depend_on_how_it_is_read() -> None:
    whole = normal(3, "w", 0, 100_000)
    assert np.array_equal(np.concatenate([normal(3, "w", 0, 33_333), normal(3, "w", 33_333, 66_667)]), whole)
    order = np.random.default_rng(0).permutation(100_000).reshape(100, 1000)
    assert np.array_equal(normal_at(3, "w", order), whole[order])
    assert normal(3, "w", 5, 0).size == 0


def test_moments() -> None:
    """Within five standard errors of an Irwin-Hall sum of twelve."""
    values = normal(1234, "model.layers.3.mlp.up_proj.weight", 0, COUNT).astype(np.float64)
    error = COUNT**-0.5
    assert abs(values.mean()) < 5 * error
    assert abs(values.var() - 1) < 5 * error * 1.9**0.5
    assert abs((values**3).mean()) < 5 * error * 11.5**0.5
    assert abs((values**4).mean() - 2.9) < 5 * error * 9**0.5
    assert np.abs(values).max() < 6
    # Shares between the quartiles of the distribution, which a wrong shape of the right variance would miss.
    assert (np.abs(values) < 0.6817).mean() == pytest.approx(0.5, abs=5 * 0.5 * error)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, "w", 0), (1, "w", 1)),
        ((1, "w", 0), (1, "w", 4096)),
        ((1, "w", 0), (2, "w", 0)),
        ((1, "model.layers.0.a", 0), (1, "model.layers.1.a", 0)),
        ((1, "w", 0), (1, "w", 2**32)),
    ],
)
def test_neighbours_are_independent(left: tuple[int, str, int], right: tuple[int, str, int]) -> None:
    """Values and their squares at neighbouring positions, rows, seeds and names do not correlate."""
    a, b = (normal(*case, COUNT).astype(np.float64) for case in (left, right))
    bound = 5 * COUNT**-0.5
    assert abs(np.corrcoef(a, b)[0, 1]) < bound
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < bound


def test_no_two_streams_repeat_each_other() -> None:
    """Distinct 48-bit patterns: a shifted copy of one stream in another would repeat whole runs."""
    streams = [normal(seed, name, 0, 20_000) for seed in (0, 1) for name in ("a", "b")]
    runs = np.concatenate([np.stack([s[:-2], s[1:-1], s[2:]], axis=1) for s in streams])
    assert len(np.unique(runs, axis=0)) == len(runs)
