"""Planning for Megatron: pure, and in Megatron's own words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from gang import SOURCES
from hypothesis import given
from hypothesis import strategies as st
from megatron_plans import DATA, GPU, experiment, own, plan, topology
from tiny import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, LLAMA4, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE

from primus.backends.megatron import MegatronBackend, patches, schema, split
from primus.config.load import load
from primus.errors import ConfigError


def test_planning_imports_no_engine() -> None:
    code = (
        "import sys; from primus.backends.megatron import MegatronBackend as B; b = B(); b.native_schema(); "
        "b.capabilities(); import primus.backends.megatron.translate, primus.backends.megatron.patches; "
        "print({'torch', 'megatron', 'numpy'} & set(sys.modules))"
    )
    path = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_axes() -> None:
    transformer = plan({"tensor": 2, "pipeline": 2, "data_shard": 2})["transformer"]
    assert transformer["tensor_model_parallel_size"] == 2
    assert transformer["sequence_parallel"] is True
    assert transformer["pipeline_model_parallel_size"] == 2
    assert "virtual_pipeline_model_parallel_size" not in transformer
    assert plan()["transformer"]["sequence_parallel"] is False
    assert plan({"context": 2})["transformer"]["context_parallel_size"] == 2


@pytest.mark.parametrize(
    ("sizes", "distributed", "instances"),
    [
        ({}, False, 1),
        ({"data_replicate": 2}, False, 1),
        ({"data_shard": 2}, True, 1),
        ({"context": 2}, True, 1),
        ({"data_shard": 2, "data_replicate": 4}, True, 4),
    ],
)
def test_shards_and_replicas(sizes: dict[str, int], distributed: bool, instances: int) -> None:
    native = plan(sizes)
    assert native["ddp"]["use_distributed_optimizer"] is distributed
    assert native["optimizer"]["use_distributed_optimizer"] is distributed
    assert native["ddp"]["num_distributed_optimizer_instances"] == instances


def test_communication_overlaps_on_an_accelerator_only() -> None:
    assert not plan({"data_shard": 2})["ddp"]["overlap_grad_reduce"]
    gpu = plan({"data_shard": 2}, hardware=GPU, precision="bf16")
    assert gpu["ddp"]["overlap_grad_reduce"]
    assert gpu["ddp"]["overlap_param_gather"]
    assert not plan({"data_replicate": 2}, hardware=GPU)["ddp"]["overlap_param_gather"]


def test_precisions() -> None:
    assert plan()["transformer"]["bf16"] is False
    assert plan()["ddp"]["grad_reduce_in_fp32"] is False
    assert plan(precision="bf16")["transformer"]["bf16"] is True
    assert plan(precision="bf16")["ddp"]["grad_reduce_in_fp32"] is True


def test_recompute() -> None:
    assert "recompute_granularity" not in plan()["transformer"]
    full = plan(recompute="full")["transformer"]
    assert (full["recompute_granularity"], full["recompute_method"], full["recompute_num_layers"]) == (
        "full",
        "uniform",
        1,
    )
    assert plan(recompute="selective")["transformer"]["recompute_granularity"] == "selective"


@pytest.mark.parametrize(
    "model",
    [LLAMA, QWEN2, QWEN3, QWEN3_MOE, MIXTRAL, LLAMA4 | {"num_experts_per_tok": 1}, DEEPSEEK_V2, DEEPSEEK_V3],
    ids=lambda model: str(model["model_type"]),
)
def test_every_family(model: dict[str, Any]) -> None:
    family = model["model_type"]
    assert family in MegatronBackend().capabilities().model_types
    settings = plan(model=model)["transformer"]
    assert settings["num_layers"] == model["num_hidden_layers"]
    assert settings["add_bias_linear"] is False
    assert settings.get("add_qkv_bias", False) is (family == "qwen2")
    assert ("kv_lora_rank" in settings) is family.startswith("deepseek")
    assert ("num_moe_experts" in settings) is ("num_experts" in model)
    if family == "llama4_text":
        assert settings["no_rope_freq"] == [0, 0, 0, 1]
        assert settings["moe_layer_freq"] == [0, 1, 0, 1]
        assert settings["moe_apply_probs_on_input"] is True
    if family.startswith("deepseek"):
        assert settings["moe_layer_freq"] == [0, 1]


def test_experts() -> None:
    settings = plan(model=DEEPSEEK_V3)["transformer"]
    assert settings["moe_router_load_balancing_type"] == "none"
    assert settings["moe_shared_expert_intermediate_size"] == 32
    balanced = plan(model=DEEPSEEK_V3, moe__balance="aux_loss", moe__aux_loss_coeff=0.02)["transformer"]
    assert balanced["moe_router_load_balancing_type"] == "aux_loss"
    assert balanced["moe_aux_loss_coeff"] == 0.02
    assert plan(model=DEEPSEEK_V3, moe__balance="aux_loss")["transformer"]["moe_aux_loss_coeff"] == 1e-3


def test_experts_are_spread_whole_or_cut_with_the_rest() -> None:
    assert plan({"tensor": 2}, model=DEEPSEEK_V3)["transformer"]["expert_tensor_parallel_size"] == 2
    spread = plan({"tensor": 2, "expert": 2}, model=DEEPSEEK_V3)["transformer"]
    assert spread["expert_model_parallel_size"] == 2
    assert spread["expert_tensor_parallel_size"] == 1


@given(layers=st.integers(1, 200), count=st.integers(2, 64))
def test_stages_hold_every_layer_once_in_order(layers: int, count: int) -> None:
    count = min(count, layers)
    if count < 2:
        return
    parts = split.stages(layers, count)
    assert len(parts) == count
    assert [word for part in parts for word in part] == ["embedding", *["decoder"] * layers, "loss"]
    weights = [len(part) for part in parts]
    assert max(weights) - min(weights) <= 1 or min(weights) == 1 or layers < 2 * count
    assert all("decoder" in part for part in parts)


def test_layers_that_do_not_divide_are_laid_out() -> None:
    layout = "pipeline_model_parallel_layout"
    assert layout not in plan({"pipeline": 2})["transformer"]
    uneven = LLAMA | {"num_hidden_layers": 5}
    assert plan({"pipeline": 2}, model=uneven)["transformer"][layout] == [
        ["embedding", "decoder", "decoder", "decoder"],
        ["decoder", "decoder", "loss"],
    ]
    interleaved = plan({"pipeline": 2}, model=uneven, parallel__virtual_pipeline=2)["transformer"]
    assert len(interleaved[layout]) == 4
    assert interleaved["virtual_pipeline_model_parallel_size"] == 2
    first = own(transformer__num_layers_in_first_pipeline_stage=2)
    assert layout not in plan({"pipeline": 2}, model=uneven, native=first)["transformer"]


@pytest.mark.parametrize("device", ["cpu", "rocm"])
def test_messages_of_a_pipeline(device: str) -> None:
    hardware = GPU if device == "rocm" else {"name": "cpu", "device": "cpu"}
    plain = plan({"pipeline": 2}, hardware=hardware)["transformer"]
    assert plain["batch_p2p_comm"] is (device != "cpu")
    assert plain["overlap_p2p_comm"] is False
    interleaved = plan({"pipeline": 2}, hardware=hardware, parallel__virtual_pipeline=2)["transformer"]
    assert interleaved["batch_p2p_comm"] is False
    assert interleaved["overlap_p2p_comm"] is True


def test_native_keys_are_laid_over() -> None:
    keys = own(transformer__deterministic_mode=True, ddp__bucket_size=1000, ddp__overlap_grad_reduce=True)
    native = plan({"data_shard": 2}, native=keys)
    assert native["transformer"]["deterministic_mode"] is True
    assert native["ddp"]["bucket_size"] == 1000
    assert native["ddp"]["overlap_grad_reduce"] is True
    assert native["ddp"]["use_distributed_optimizer"] is True


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("transformer: {hidden_dropuot: 0.1}", "unknown key 'hidden_dropuot' in megatron.transformer"),
        ("transformer: {hidden_dropout: 0.1}", "unknown key 'hidden_dropout'"),
        ("transformer: {num_layers: 3}", "megatron.transformer.num_layers is set by the portable key"),
        ("ddp: {use_distributed_optimizer: true}", "is set by the portable key parallel.data_shard"),
        ("optimizer: {adam_beta1: 0.9}", "is set by the portable key optimizer.betas"),
        ("ddp: {bucket_size: many}", "megatron.ddp.bucket_size must be a whole number"),
        ("transformer: {recompute_method: blocks}", "did you mean block?"),
        ("transformer: {pipeline_model_parallel_layout: Et|tL}", "must be a list"),
        ("ddp: {use_megatron_fsdp: true}", "unknown key 'use_megatron_fsdp'"),
    ],
)
def test_keys_are_checked_when_the_file_is_read(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "experiment.yaml"
    tree = experiment().model_dump(mode="json", by_alias=True, exclude_unset=True)
    file.write_text(f"{yaml.safe_dump(tree)}megatron:\n  {written}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert said in str(caught.value)
    engine = schema.engine_version()
    assert "unknown" not in said or f"megatron-core {engine}" in str(caught.value)


def test_a_plan_carries_patches_and_variables() -> None:
    backend = MegatronBackend()
    _, env, listed = backend.plan(experiment(), topology(), DATA)
    assert listed == patches.for_device("cpu")
    assert env == {"OMP_WAIT_POLICY": "PASSIVE"}
    _, env, listed = backend.plan(experiment(hardware=GPU), topology(), DATA)
    assert listed == patches.for_device("rocm")
    assert env["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert len(listed) < len(patches.for_device("cpu")) <= 15


def test_more_stages_than_layers_end() -> None:
    """They are refused elsewhere; here the search for a split must not go on for ever."""
    assert sum(stage.count("decoder") for stage in split.stages(1, 2)) == 1
