"""Every family that MaxText trains: the plain loop's losses, from a random start and from a Hugging Face directory."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, MIXTRAL, QWEN3_MOE, make, make_dataset

from primus.backends.maxtext.layout import weights
from primus.config.model_size import measure
from primus.plan.plan import Plan
from primus.runtime.environments import provide

BAND, HALF_BAND = 1e-5, 2e-2
"""Nats, in fp32 and in bf16, where some tokens choose other experts."""
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SHARP = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
FLAGS = {"env": {"XLA_FLAGS": "--xla_backend_optimization_level=1"}}
"""A third less time to compile."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model": LLAMA | {"rope_scaling": LLAMA3, "tie_word_embeddings": True}},
    "mixtral": {"model": MIXTRAL, "moe__balance": "bias", "train__seed": 1},
    "qwen3_moe": {
        "model": QWEN3_MOE | {"norm_topk_prob": False},
        "moe__balance": "none",
        "train__seed": 1,
        "maxtext__sparse_matmul": False,
    },
    "deepseek_v2": {
        "model": DEEPSEEK_V2 | {"first_k_dense_replace": 0, "rope_scaling": SHARP},
        "moe__balance": "aux_loss",
        "moe__aux_loss_coeff": 10.0,
        "train__micro_batch_size": 1,
        "train__seed": 5,
    },
    "deepseek_v3": {
        "model": DEEPSEEK_V3
        | {"num_hidden_layers": 3, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "init_std": 0.06},
        "moe__balance": "bias",
        "train__micro_batch_size": 2,
        "train__seed": 1,
    },
}
"""The seeds leave no token of the plain loop close to another choice of experts. The coefficient is so large that a
wrong weight shows."""
LEARNT = ("qwen3_moe", "deepseek_v3")
"""Started from the weights of a model of transformers, norms and biases moved off their start."""
BALANCED = ("mixtral", "deepseek_v2", "deepseek_v3")
HALF = ("deepseek_v3",)


def plan_of(root: Path, name: str, dataset: Path, **options: Any) -> Plan:
    return make(root / name, dataset, backend="maxtext", **{"optimizer__lr": 2e-3, **FLAGS, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="module")
def expected(root: Path, dataset: Path) -> dict[str, reference.Trained]:
    """The plain loop's losses; where it starts from learnt weights, these are then in a directory."""
    trained = {}
    for name, options in FAMILIES.items():
        plan = plan_of(root, f"reference-{name}", dataset, **options)
        model = reference.random_model(plan)
        if name in LEARNT:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
                    if key.endswith(("norm.weight", "_bias")):
                        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            model.save_pretrained(root / f"learnt-{name}")
        alone = reference.train(plan, model=deepcopy(model)) if name in BALANCED else None
        trained[name] = reference.train(plan, model=model, balanced=True)
        if alone is not None:  # else the plain loop would not tell whether MaxText balances
            losses = trained[name].losses
            assert max(abs(alone.losses[step] - losses[step]) for step in losses) > 20 * BAND
    return trained


@pytest.fixture(scope="module")
def ran(root: Path, dataset: Path, expected: dict[str, reference.Trained]) -> dict[str, Ran]:
    cases = []
    for name, options in FAMILIES.items():
        start = {"model": {"init": str(root / f"learnt-{name}")}} if name in LEARNT else {}
        for precision in ("fp32", "bf16") if name in HALF else ("fp32",):
            plan = plan_of(root, f"{name}-{precision}", dataset, **options | start, precision=precision)
            cases.append(Case(f"{name} {precision}", plan))
        if name == "deepseek_v3":
            plan = plan_of(root, f"{name}-stopped", dataset, **options | start)
            cases += [Case("stopped", plan, stop=(0, 6)), Case("resumed", plan, attempt=2)]
    return run_gang(cases, 1, root / "gang", python=provide("jax"))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_what_the_plain_loop_does(
    name: str, ran: dict[str, Ran], expected: dict[str, reference.Trained]
) -> None:
    wanted, found = expected[name], ran[f"{name} fp32"].ended()
    assert wanted.gap > 1e-6
    assert found.losses == pytest.approx(wanted.losses, abs=BAND, rel=0)
    assert found.norms == pytest.approx(wanted.norms, rel=1e-4)


@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_in_its_band(name: str, ran: dict[str, Ran], expected: dict[str, reference.Trained]) -> None:
    assert ran[f"{name} bf16"].ended().losses == pytest.approx(expected[name].losses, abs=HALF_BAND, rel=0)


def test_biases_go_on_where_they_were(ran: dict[str, Ran]) -> None:
    first, then = ran["stopped"].ended(), ran["resumed"].ended()
    assert min(then.losses) == 7
    assert {**first.losses, **then.losses} == ran["deepseek_v3 fp32"].ended().losses


@pytest.mark.parametrize("name", FAMILIES)
def test_the_described_weights_are_as_many_as_the_model_has(name: str, root: Path, dataset: Path) -> None:
    model = plan_of(root, f"count-{name}", dataset, **FAMILIES[name]).experiment.model
    counted = sum(math.prod(weight.shape) for weight in weights(model) if not weight.optional)
    assert counted == measure(model).total
