"""Every example file plans. None of those for accelerators was run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from primus.config.load import load
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted((EXAMPLES / "torchtitan" / "configs").glob("*/*.yaml"))
NODES = {"H100/llama3.1_70B-bf16-pretrain": 4}


def label(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def planned(path: Path, directory: Path, nnodes: int = 1) -> Plan:
    return make_plan(load(path, (), {}), nnodes=nnodes, run_directory=directory)


def test_there_are_examples_for_the_common_hardware() -> None:
    assert {path.parent.name for path in CONFIGS} == {"MI300X", "MI325X", "MI355X", "H100"}
    assert len(CONFIGS) >= 40


@pytest.mark.parametrize("path", CONFIGS, ids=label)
def test_example_plans(path: Path, tmp_path: Path) -> None:
    nnodes = NODES.get(label(path), 1)
    plan = planned(path, tmp_path, nnodes)
    experiment = plan.experiment
    assert plan.topology.world_size == 8 * nnodes
    assert experiment.hardware.name == path.parent.name
    assert experiment.name == path.stem
    model, precision, _ = path.stem.rsplit("-", 2)
    assert plan.origins["model.hidden_size"].startswith("preset models/")
    assert f"models/{model}," in path.read_text()
    assert experiment.precision == precision
    assert "not run" in path.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=label)
def test_weights_gradients_and_optimizer_fit_the_memory(path: Path, tmp_path: Path) -> None:
    """fp32 weights, gradients and two moments, sharded evenly, leave a quarter of the memory to activations."""
    nnodes = NODES.get(label(path), 1)
    plan = planned(path, tmp_path, nnodes)
    gib = 16 * plan.parameters / plan.topology.world_size / 2**30
    assert gib < 0.75 * (plan.experiment.hardware.memory_gib or 0)


def test_examples_are_a_few_lines() -> None:
    for path in CONFIGS:
        assert len(path.read_text().splitlines()) <= 12, path
