"""Layouts of MaxText's mesh train what one device does, and a run goes on in another. ``tests/parity`` holds each axis
alone to the plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, make, make_dataset

from primus.plan.plan import Plan
from primus.runtime.environments import provide

TOLERANCE = 1e-5
"""Nats, in fp32: rounding of other kernels, summed over ten steps."""

COMMON: dict[str, Any] = {
    "backend": "maxtext",
    "optimizer__lr": 2e-3,
    "train__micro_batch_size": 2,
    "train__seq_length": 128,
    "data__document_attention": "within",
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "context": {"nproc": 2, "parallel__context": 2},
    "nodes": {
        "nproc": 4,
        "parallel__pipeline": 2,
        "parallel__schedule": "gpipe",
        "parallel__data_shard": 2,
        "recompute": "full",
        "train__micro_batch_size": 1,
        "checkpoint__interval": 4,
    },
}
"""``nodes``: two processes of two devices each, a stage in either."""
EXPERTS: dict[str, Any] = {"model": DEEPSEEK_V3, "moe__balance": "bias"}
SPREAD: dict[str, Any] = {"nproc": 4, "parallel__expert": 2, "parallel__tensor": 2, "checkpoint__interval": 4}
FURTHER: dict[str, tuple[str, int, dict[str, Any]]] = {
    "circular": (
        "nodes",
        4,
        {"nproc": 2, "parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "checkpoint__interval": 7},
    ),
    "no pipeline": ("circular", 7, {"nproc": 4, "parallel__context": 2, "parallel__tensor": 2}),
    "experts together": ("experts spread", 4, EXPERTS),
}
"""Run -> the one that it continues, from which step, its layout."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("axes")


@pytest.fixture(scope="module")
def ran(root: Path) -> dict[str, Ran]:
    python, dataset = provide("jax"), make_dataset(root / "data" / "chain")

    def plan(name: str, options: dict[str, Any]) -> Plan:
        return make(root / name.replace(" ", "-"), dataset, **COMMON | options)

    alone = {"one": {}, "experts spread": EXPERTS | SPREAD} | LAYOUTS
    cases = [Case(name, plan(name, options)) for name, options in alone.items() if name != "nodes"]
    found = run_gang(cases, 1, root / "alone", python=python)
    on_nodes = plan("nodes", LAYOUTS["nodes"])
    topology = on_nodes.topology.model_copy(update={"nnodes": 2, "nproc_per_node": 2})
    found |= run_gang(
        [Case("nodes", on_nodes.model_copy(update={"topology": topology}))], 2, root / "two", python=python
    )
    for name, (before, step, options) in FURTHER.items():
        further = plan(name, options)
        whole = Path(further.run_directory)
        (whole / "checkpoints").mkdir()
        (root / before.replace(" ", "-") / "checkpoints" / f"step-{step}").rename(
            whole / "checkpoints" / f"step-{step}"
        )
        found |= run_gang([Case(name, further)], 1, root / "further", python=python)
    return found


@pytest.mark.parametrize("name", [*LAYOUTS, *FURTHER])
def test_a_layout_trains_what_one_device_does(name: str, ran: dict[str, Ran]) -> None:
    first = FURTHER[name][1] if name in FURTHER else 0
    found, expected = ran[name].ended(), ran["experts spread" if "experts" in name else "one"].ended()
    assert [*found.losses] == [*range(first + 1, 11)]
    assert max(abs(loss - expected.losses[step]) for step, loss in found.losses.items()) < TOLERANCE
    assert max(abs(norm - expected.norms[step]) for step, norm in found.norms.items()) < TOLERANCE
