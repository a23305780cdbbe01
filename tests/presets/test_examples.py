"""Every example file plans. None of those for accelerators was run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from primus.config import model_size
from primus.config.load import load
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*/configs/*/*.yaml"))
NUMBERS = {"one": 1, "two": 2, "four": 4, "eight": 8}
KEPT_FREE = 0.25
"""Share of the memory for activations and all that is not counted."""


def label(path: Path) -> str:
    return f"{backend(path)}/{path.parent.name}/{path.stem}"


def backend(path: Path) -> str:
    return path.parents[2].name


def machine(path: Path) -> tuple[int, str]:
    """Number of nodes and their devices, as the first line says."""
    found = re.match(r"# For (\w+) nodes? of eight (\w+)\. Planned by the tests, not run", path.read_text())
    assert found, path
    return NUMBERS.get(found[1]) or int(found[1]), found[2]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Plan]:
    """On as many nodes as each is for."""
    directory = tmp_path_factory.mktemp("runs")
    return {path: make_plan(load(path, (), {}), nnodes=machine(path)[0], run_directory=directory) for path in CONFIGS}


def test_there_are_examples_for_the_common_hardware_and_models() -> None:
    for engine, count in (("torchtitan", 60), ("megatron", 100), ("maxtext", 80)):
        there = [path for path in CONFIGS if backend(path) == engine]
        assert {path.parent.name for path in there} == {"MI300X", "MI325X", "MI350X", "MI355X", "H100", "H200"}
        assert len(there) >= count
    assert EXAMPLES / "megatron" / "configs" / "MI300X" / "llama2_7B-BF16-pretrain.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=label)
def test_example_plans(path: Path, plans: dict[Path, Plan]) -> None:
    plan = plans[path]
    experiment = plan.experiment
    nodes, device = machine(path)
    assert (plan.topology.nnodes, plan.topology.world_size) == (nodes, 8 * nodes)
    assert experiment.hardware.name == path.parent.name == device
    assert experiment.name == path.stem
    assert experiment.backend == backend(path)
    model, precision, _ = path.stem.rsplit("-", 2)
    assert plan.origins["model.hidden_size"].startswith("preset models/")
    assert f"models/{model}," in path.read_text()
    assert experiment.precision == precision.lower()


@pytest.mark.parametrize("path", CONFIGS, ids=label)
def test_weights_gradients_and_optimizer_fit_the_memory(path: Path, plans: dict[Path, Plan]) -> None:
    plan = plans[path]
    needed = {"torchtitan": sharded, "maxtext": with_scores, "megatron": optimizer_sharded}[backend(path)](plan)
    assert needed / 2**30 < (1 - KEPT_FREE) * (plan.experiment.hardware.memory_gib or 0)


def sharded(plan: Plan) -> float:
    """Bytes a device: fp32 weights, gradients and two moments, all sharded evenly."""
    return 16 * plan.parameters / plan.topology.world_size


def with_scores(plan: Plan) -> float:
    """And the scores of one layer's attention, which MaxText's dot_product makes as a whole in fp32, with their softmax
    and gradient."""
    experiment = plan.experiment
    heads = experiment.model.num_attention_heads / plan.topology.tensor
    queries = experiment.train.seq_length / plan.topology.context
    return sharded(plan) + 12 * experiment.train.micro_batch_size * heads * queries * experiment.train.seq_length


def optimizer_sharded(plan: Plan) -> float:
    """Bytes a device: bf16 weights and fp32 gradients, cut by tensor, pipeline and expert; fp32 weights and moments,
    which the distributed optimizer spreads over all."""
    model, sizes = plan.experiment.model, plan.topology
    size = model_size.measure(model)
    experts, chosen = model.num_experts or 0, model.num_experts_per_tok or 0
    routed = (size.total - size.active) * experts / (experts - chosen) if experts else 0
    cut = sizes.expert if sizes.expert > 1 else sizes.tensor
    here = ((size.total - routed) / sizes.tensor + routed / cut) / sizes.pipeline
    return 6 * here + 12 * size.total / sizes.world_size


def test_examples_are_a_few_lines() -> None:
    for path in CONFIGS:
        assert len(path.read_text().splitlines()) <= 12, path
