"""Planning for TorchTitan: pure, and refusing at once what the engine cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from gang import SOURCES
from hypothesis import given
from hypothesis import strategies as st
from tiny import DEEPSEEK_V3, LLAMA, MIXTRAL, QWEN3_MOE

from primus.backends.torchtitan import TorchTitanBackend, patches
from primus.backends.torchtitan.translate import native_config, stages
from primus.config.experiment import Experiment
from primus.errors import PlanError
from primus.plan.plan import PlannedData, Topology

DATA = PlannedData(kind="synthetic", digest="0")
GPU = {"name": "MI300X", "device": "rocm", "peak_tflops": {"bf16": 1307.4, "fp8": 2614.9}}


def experiment(**overrides: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "t",
        "hardware": {"name": "cpu", "device": "cpu"},
        "model": LLAMA,
        "data": {"train": "synthetic"},
        "train": {"steps": 10, "global_batch_size": 8, "seq_length": 64},
        "optimizer": {"lr": 1.0e-3},
        "precision": "fp32",
    }
    for key, value in overrides.items():
        *sections, name = key.split("__")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return Experiment.model_validate(tree)


def topology(**sizes: int) -> Topology:
    given_sizes = {"data_replicate": 1, "data_shard": 1, "tensor": 1, "pipeline": 1, "context": 1, "expert": 1, **sizes}
    world = 1
    for axis in ("data_replicate", "data_shard", "tensor", "pipeline", "context"):
        world *= given_sizes[axis]
    batch = {"micro_batch_size": 1, "microbatches": 8 // given_sizes["data_shard"], **sizes}
    return Topology(nnodes=1, nproc_per_node=world, **{**given_sizes, **batch})


def plan(sizes: dict[str, int] | None = None, **overrides: Any) -> dict[str, Any]:
    return native_config(experiment(**overrides), topology(**(sizes or {})), DATA)


def refused(sizes: dict[str, int] | None = None, **overrides: Any) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        plan(sizes, **overrides)
    return {problem.where: f"{problem.message} ({problem.remedy})" for problem in caught.value.problems}


def test_planning_imports_no_engine() -> None:
    code = (
        "import sys; from primus.backends.torchtitan import TorchTitanBackend as B; b = B(); b.native_schema(); "
        "b.capabilities(); import primus.backends.torchtitan.translate, primus.backends.torchtitan.patches; "
        "print({'torch', 'torchtitan', 'numpy'} & set(sys.modules))"
    )
    path = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_batches_and_axes() -> None:
    native = plan({"data_shard": 2, "tensor": 2, "micro_batch_size": 2, "microbatches": 2}, parallel__tensor=2)
    assert native["training"]["local_batch_size"] == 2
    assert native["training"]["global_batch_size"] == 8
    assert native["parallelism"]["data_parallel_shard_degree"] == 2
    assert native["parallelism"]["tensor_parallel_degree"] == 2
    assert "pipeline_parallel_schedule" not in native["parallelism"]


def test_a_pipeline_takes_all_microbatches_at_once() -> None:
    native = plan({"pipeline": 2}, parallel__pipeline=2)
    assert native["training"]["local_batch_size"] == 8
    parallelism = native["parallelism"]
    assert parallelism["pipeline_parallel_microbatch_size"] == 1
    assert parallelism["pipeline_parallel_schedule"] == "1F1B"
    assert parallelism["module_fqns_per_model_part"] == [
        ["tok_embeddings", "layers.0", "layers.1"],
        ["layers.2", "layers.3", "norm", "lm_head"],
    ]


@given(layers=st.integers(1, 200), count=st.integers(2, 64))
def test_stages_hold_every_layer_once_in_order(layers: int, count: int) -> None:
    count = min(count, layers)
    if count < 2:
        return
    parts = stages(layers, count)
    assert len(parts) == count
    names = [name for part in parts for name in part]
    assert names == ["tok_embeddings", *(f"layers.{layer}" for layer in range(layers)), "norm", "lm_head"]
    weights = [sum(name != "norm" for name in part) for part in parts]
    assert max(weights) - min(weights) <= 1 or min(weights) == 1 or layers < 2 * count
    assert all(any(name.startswith("layers.") for name in part) for part in parts)


def test_native_keys_are_laid_over() -> None:
    native = plan(
        native={
            "torchtitan": {
                "training": {"gc_freq": 7},
                "parallelism": {"spmd_backend": "full_dtensor"},
                "override": {"imports": ["a.b"]},
            }
        }
    )
    assert native["training"]["gc_freq"] == 7
    assert native["parallelism"]["spmd_backend"] == "full_dtensor"
    assert native["override"]["imports"] == ["a.b"]


def test_masks_on_a_cpu_go_through_the_override() -> None:
    override = "primus.backends.torchtitan.attention.masked_attention"
    assert plan()["override"]["imports"] == []
    assert plan({"context": 2}, parallel__context=2, train__seq_length=256)["override"]["imports"] == [override]
    gpu = plan({"context": 2}, parallel__context=2, train__seq_length=256, hardware=GPU, precision="bf16")
    assert gpu["override"]["imports"] == []


def test_recompute_and_the_memory_budget() -> None:
    assert plan(recompute="full")["activation_checkpoint"] == {"mode": "full"}
    budget = {"torchtitan": {"activation_checkpoint": {"memory_budget": 0.3}}}
    assert plan(compile=True, native=budget)["activation_checkpoint"] == {"mode": "memory_budget", "memory_budget": 0.3}
    assert "compile" in refused(native=budget)["torchtitan.activation_checkpoint.memory_budget"]
    idle = {"torchtitan": {"activation_checkpoint": {"debug": True}}}
    assert "nothing is recomputed" in refused(native=idle)["torchtitan.activation_checkpoint"]


def test_precisions() -> None:
    assert plan(precision="bf16")["training"]["mixed_precision_param"] == "bfloat16"
    assert plan(hardware=GPU, precision="fp8")["training"]["mixed_precision_param"] == "bfloat16"
    old = {"name": "MI250X", "device": "rocm", "peak_tflops": {"bf16": 383.0}}
    assert "MI250X has no fp8 arithmetic" in refused(hardware=old, precision="fp8")["precision"]
    assert "cpu has no fp8 arithmetic" in refused(precision="fp8")["precision"]
    emulated = {"torchtitan": {"float8": {"emulate": True}}}
    assert plan(precision="fp8", native=emulated)["float8"] == {
        "filter_fqns": ["lm_head", "router.gate"],
        "emulate": True,
    }
    assert "cannot be compiled" in refused(precision="fp8", compile=True, native=emulated)["torchtitan.float8.emulate"]
    emulated["torchtitan"]["float8"]["recipe_name"] = "rowwise"
    assert "whole tensors" in refused(precision="fp8", native=emulated)["torchtitan.float8.recipe_name"]
    filters = {"torchtitan": {"float8": {"filter_fqns": ["layers.0"]}}}
    assert "precision: fp8" in refused(precision="bf16", native=filters)["torchtitan.float8"]


def test_what_grouped_products_of_experts_ask_for() -> None:
    assert "in bf16 only" in refused(model=MIXTRAL, compile=True)["compile"]
    assert plan(model=MIXTRAL, compile=True, precision="bf16")
    assert plan(compile=True)  # no experts
    narrow = MIXTRAL | {"intermediate_size": 36}
    assert plan(model=narrow)
    text = refused(model=narrow, precision="bf16")["model.intermediate_size"]
    assert "36 does not divide by 8" in text
    assert "model.intermediate_size: 32 or 40" in text
    text = refused({"tensor": 2}, model=narrow, parallel__tensor=2)["model.intermediate_size"]
    assert "36 does not divide by 4 x parallel.tensor 2" in text
    whole = {"tensor": 2, "expert": 2}  # experts are not cut
    assert plan(whole, model=narrow, parallel__tensor=2, parallel__expert=2)
    assert "model.moe_intermediate_size" in refused(model=QWEN3_MOE | {"moe_intermediate_size": 30})


@pytest.mark.parametrize(
    ("sizes", "length", "unit"),
    [
        ({"tensor": 2}, 63, 2),
        ({"context": 2}, 320, 256),
        ({"context": 2, "tensor": 2}, 320, 256),
    ],
)
def test_sequences_that_do_not_divide(sizes: dict[str, int], length: int, unit: int) -> None:
    asked = {f"parallel__{axis}": size for axis, size in sizes.items()}
    text = refused(sizes, train__seq_length=length, **asked)["train.seq_length"]
    assert f"{length} tokens do not divide by {unit} " in text
    for offered in text.rpartition("train.seq_length: ")[2].rstrip(")").split(" or "):
        assert plan(sizes, train__seq_length=int(offered), **asked)["training"]["seq_len"] == int(offered)


@pytest.mark.parametrize(
    ("key", "sizes", "overrides"),
    [
        ("parallel.schedule", {}, {"parallel__schedule": "1f1b"}),
        ("parallel.virtual_pipeline", {}, {"parallel__virtual_pipeline": 2}),
        ("parallel.schedule", {"pipeline": 2}, {"parallel__virtual_pipeline": 2, "parallel__schedule": "gpipe"}),
        ("parallel.virtual_pipeline", {"pipeline": 2}, {"parallel__schedule": "interleaved_1f1b"}),
        ("parallel.pipeline", {"pipeline": 8}, {}),
        ("parallel.pipeline", {"pipeline": 2, "microbatches": 1}, {}),
        ("parallel.schedule", {"pipeline": 2, "microbatches": 5}, {"parallel__virtual_pipeline": 2}),
        ("parallel.pipeline", {"pipeline": 2}, {"model__tie_word_embeddings": True, "model": LLAMA}),
        ("moe.balance", {}, {"model": DEEPSEEK_V3, "moe__balance": "aux_loss"}),
    ],
)
def test_refusals(key: str, sizes: dict[str, int], overrides: dict[str, Any]) -> None:
    if "model__tie_word_embeddings" in overrides:
        overrides = {"model": LLAMA | {"tie_word_embeddings": True}}
    asked = {f"parallel__{axis}": sizes[axis] for axis in ("pipeline", "expert") if axis in sizes}
    problems = refused(sizes, **asked, **overrides)
    assert set(problems) == {key}


def test_everything_wrong_is_said_at_once() -> None:
    problems = refused(
        {"pipeline": 2, "tensor": 2},
        parallel__pipeline=2,
        parallel__tensor=2,
        parallel__schedule="interleaved_1f1b",
        train__seq_length=63,
        native={"torchtitan": {"float8": {"filter_fqns": []}}},
    )
    assert set(problems) == {"train.seq_length", "parallel.virtual_pipeline", "torchtitan.float8"}


def test_the_loss_is_chunked_on_a_gpu_in_equal_parts() -> None:
    assert plan()["loss"] == {"num_chunks": 1}
    assert plan(hardware=GPU)["loss"] == {"num_chunks": 8}
    assert plan(hardware=GPU, train__seq_length=36)["loss"] == {"num_chunks": 4}
    uneven = {"torchtitan": {"loss": {"num_chunks": 5}}}
    assert "64 tokens of a sequence" in refused(native=uneven)["torchtitan.loss.num_chunks"]


def test_a_cpu_has_nothing_to_offload() -> None:
    offload = {"torchtitan": {"training": {"enable_cpu_offload": True}}}
    assert set(refused(native=offload)) == {"torchtitan.training.enable_cpu_offload"}
    assert plan(hardware=GPU, native=offload)["training"]["enable_cpu_offload"] is True


def test_a_plan_carries_patches_and_variables() -> None:
    _, env, listed = TorchTitanBackend().plan(experiment(), topology(), DATA)
    assert listed == patches.for_device("cpu")
    assert env == {"OMP_WAIT_POLICY": "PASSIVE"}
    _, env, listed = TorchTitanBackend().plan(experiment(hardware=GPU | {"device": "cuda"}), topology(), DATA)
    assert listed == patches.for_device("cuda")
    assert "PYTORCH_ALLOC_CONF" in env


def test_replica_groups_have_no_axis_of_the_engine() -> None:
    groups = {"data_replicate": 2, "replica_groups": 2}
    native = plan(groups)
    assert native["parallelism"]["data_parallel_replicate_degree"] == 1
    assert set(refused({**groups, "pipeline": 2})) == {"parallel.pipeline"}
    assert set(refused(groups, resilience__anomaly="rollback")) == {"resilience.anomaly"}
    assert set(refused(groups, resilience__spike_factor=2.0)) == {"resilience.spike_factor"}
    assert set(refused(groups, model=DEEPSEEK_V3, moe__balance="bias")) == {"moe.balance"}
