"""What an experiment may ask of TorchTitan beside a layout, and a plain loop: the same losses, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
from gang import Case, Ran, run_gang
from tiny import QWEN3, make, make_dataset

TOLERANCE = 1e-5
"""Measured here: at most 2e-6, the noise of fp32 sums in another order."""

Settings = tuple[str, dict[str, Any]]

ONE: dict[str, Settings] = {
    "one-process": ("llama", {}),
    "accumulation": ("llama", {"train__micro_batch_size": 1}),
    "masked": ("masked", {"masked": True}),
    "selective-recompute": ("llama", {"recompute": "selective"}),
    "full-recompute": ("llama", {"recompute": "full"}),
    "never-clipped": ("never-clipped", {"optimizer__clip_grad_norm": 0.0}),
    "chunked-loss": ("llama", {"torchtitan__loss__num_chunks": 4}),
    "qwen3": ("qwen3", {"model": QWEN3}),
}
TWO: dict[str, Settings] = {
    "data-shard-masked": ("masked", {"masked": True, "parallel__data_shard": 2, "train__micro_batch_size": 2}),
    "tensor-chunked-loss": ("llama", {"parallel__tensor": 2, "torchtitan__loss__num_chunks": 4}),
    "tensor-qwen3": ("qwen3", {"model": QWEN3, "parallel__tensor": 2}),
    "pipeline-masked": ("masked", {"masked": True, "parallel__pipeline": 2, "train__micro_batch_size": 2}),
    "pipeline-chunked-loss": ("llama", {"parallel__pipeline": 2, "torchtitan__loss__num_chunks": 4}),
}
"""Beside the layouts of ``test_engines.py``."""
REFERENCES: dict[str, dict[str, Any]] = {
    "llama": {},
    "masked": {"masked": True},
    "never-clipped": {"optimizer__clip_grad_norm": 0.0},
    "qwen3": {"model": QWEN3},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "chain")


@pytest.fixture(scope="module")
def ran(dataset: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Ran]:
    """Results of the cases that were asked for, each world size in one gang."""
    mine = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("case") for item in mine}
    root = tmp_path_factory.mktemp("runs")
    results: dict[str, Ran] = {}
    for world, cases in ((1, ONE), (2, TWO)):
        chosen = [
            Case(name, make(root / name, dataset, nproc=world, **settings))
            for name, (_, settings) in cases.items()
            if name in asked
        ]
        if chosen:
            results |= run_gang(chosen, world, root / f"gang-{world}")
    return results


@pytest.fixture(scope="module")
def references(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, reference.Trained]:
    root = tmp_path_factory.mktemp("references")
    return {name: reference.train(make(root / name, dataset, **settings)) for name, settings in REFERENCES.items()}


@pytest.mark.parametrize("case", [*ONE, *TWO])
def test_losses_equal_the_plain_loop(
    case: str,
    ran: dict[str, Ran],
    references: dict[str, reference.Trained],
    record_property: Callable[[str, object], None],
) -> None:
    expected = references[{**ONE, **TWO}[case][0]]
    found = ran[case].ended()
    assert list(found.losses) == list(expected.losses)
    differences = {step: abs(loss - expected.losses[step]) for step, loss in found.losses.items()}
    record_property("largest loss difference", max(differences.values()))
    assert max(differences.values()) <= TOLERANCE, differences
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert expected.losses[10] < expected.losses[1] - 0.3, "the model learns, so that equal losses mean something"
