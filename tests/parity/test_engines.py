"""Every engine, in every layout, trains the same tiny experiments as a plain loop does: 20 steps in fp32.

``make parity`` writes the same measurements into docs/numerics.md.
"""

from __future__ import annotations

from pathlib import Path

import parity
import pytest
from gang import Ran
from tiny import make_dataset

Key = tuple[str, str, str]

ALONE = "1 process"
SMALLEST_GAP = 1e-6
"""Between the score of a chosen expert and of the best other one; rounding moves a score by about 1e-7."""
NORMS_APART = 1e-4
"""Largest relative difference of a gradient norm from the plain loop's."""
ENGINES_APART = 5e-6
"""Largest difference of a loss between two engines in one process."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="module")
def ran(root: Path, dataset: Path, request: pytest.FixtureRequest) -> dict[Key, Ran]:
    """Those that were asked for, and all in one process."""
    mine = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("key") for item in mine}
    wanted = [key for key in parity.tested() if key in asked or key[2] == ALONE]
    return parity.run(wanted, root, dataset)


@pytest.mark.parametrize("key", list(parity.tested()), ids=" - ".join)
def test_losses_equal_the_plain_loop(ran: dict[Key, Ran], key: Key, root: Path, dataset: Path) -> None:
    expected = parity.plain_loop(key[0], root, dataset)
    assert parity.difference(ran[key], expected) <= expected.band
    assert ran[key].norms == pytest.approx(expected.norms, rel=NORMS_APART)
    assert expected.losses[20] < expected.losses[1] - 0.3, "it learns, so that equal losses mean something"


@pytest.mark.parametrize("model", parity.MIXTURES)
def test_no_token_of_the_reference_is_close_to_another_expert(model: str, root: Path, dataset: Path) -> None:
    gap = parity.plain_loop(model, root, dataset).gap
    assert gap is not None
    assert gap > SMALLEST_GAP


@pytest.mark.parametrize("model", parity.MODELS)
def test_engines_are_closer_to_each_other(ran: dict[Key, Ran], model: str) -> None:
    alone = [ran[key].ended().losses for key in parity.combinations() if key[0] == model and key[2] == ALONE]
    for losses in alone[1:]:
        assert losses == pytest.approx(alone[0], abs=ENGINES_APART, rel=0)


@pytest.fixture(scope="module")
def half(root: Path, dataset: Path) -> dict[Key, Ran]:
    return parity.run_half(root, dataset, [ALONE])


@pytest.mark.parametrize("key", [key for key in parity.combinations() if key[2] == ALONE], ids=" - ".join)
def test_bf16_stays_in_its_band(half: dict[Key, Ran], key: Key, root: Path, dataset: Path) -> None:
    expected = parity.plain_loop(key[0], root, dataset)
    found = parity.difference(half[key], expected)
    assert 1e-5 < found <= parity.HALF_BAND, "more than in fp32, so that it was bf16"
