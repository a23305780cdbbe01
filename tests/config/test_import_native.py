"""The engine's own keys of an imported file go into its section, as far as the real schema has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from imported import accepted, fate, reason

from primus.backends import registry
from primus.config.importing.convert import Import
from primus.config.importing.table import TABLES

NATIVE_ROWS = [
    (backend, key) for backend, table in TABLES.items() for key, rule in table.items() if "native " in rule.text
]


@pytest.mark.parametrize(("backend", "key"), NATIVE_ROWS, ids=lambda word: word)
def test_rows_of_the_engine_s_own_keys_lead_to_keys_that_can_be_set(backend: str, key: str) -> None:
    """What its schema leaves out is not carried, for the reason that the row gives: no row is left to the schema."""
    target = TABLES[backend][key].text.removeprefix("native ")
    found = registry.get(backend).native_schema().keys.get(target)
    assert found is not None, f"{key} -> {target}"
    assert found.portable is None, f"{target} is set by {found.portable}"


def test_megatron_s_own_keys(megatron: Callable[..., Import]) -> None:
    result = megatron(
        "overlap_grad_reduce: ${OVERLAP:true}",
        "cross_entropy_loss_fusion: true",
        "grad_reduce_in_bf16: true",
        "bucket_size: 40000000",
        "no_bias_swiglu_fusion: true",
        "moe_router_dtype: fp8",
        "mtp_num_layers: 1",
        "recompute_granularity: full",
        "recompute_method: block",
        "recompute_num_layers: 4",
    )
    assert accepted(result).experiment.native == {
        "megatron": {
            "ddp": {"bucket_size": 40000000, "grad_reduce_in_fp32": False, "overlap_grad_reduce": True},
            "transformer": {
                "bias_activation_fusion": False,
                "cross_entropy_loss_fusion": True,
                "mtp_num_layers": 1,
                "recompute_method": "block",
                "recompute_num_layers": 4,
            },
        }
    }
    assert 'overlap_grad_reduce: "${OVERLAP:true}"' in result.text
    assert "must be one of fp32, fp64" in reason(result, "moe_router_dtype")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("main_grads_dtype: bf16", "moments and master weights are fp32"),
        ("use_precision_aware_optimizer: true", "moments and master weights are fp32"),
        ("optimizer_cpu_offload: true", "stays on the device"),
        ("use_torch_fsdp2: true", "shards the optimizer's state of this engine"),
        ("use_megatron_fsdp: true", "shards the optimizer's state of this engine"),
        ("cp_comm_type: p2p", "gathers the keys and values"),
        ("attention_backend: flash", "which attention runs"),
        ("masked_softmax_fusion: true", "which attention runs"),
        ("tp_comm_overlap: true", "TransformerEngine's that is not set up"),
        ("fp8_param_gather: true", "fp8 trains with backend: torchtitan"),
        ("overlap_moe_expert_parallel_comm: true", "whole microbatches"),
        ("enable_cuda_graph: true", "CUDA graphs"),
        ("moe_router_fusion: true", "the router is Primus's own"),
    ],
)
def test_what_megatron_s_schema_leaves_out_has_its_reason(
    megatron: Callable[..., Import], line: str, expected: str
) -> None:
    assert expected in reason(megatron(line), line.partition(":")[0])


def test_what_agrees_with_megatron_here(megatron: Callable[..., Import]) -> None:
    result = megatron(
        "exp_avg_dtype: fp32",
        "no_masked_softmax_fusion: true",
        "add_qkv_bias: true",
        "attention_backend: auto",
        "moe_grouped_gemm: true",
        "mtp_loss_scaling_factor: 0.1",
        "moe_input_jitter_eps: 0.0",
        "fp8_recipe: delayed",
    )
    assert [item.setting.name for item in result.left] == []
    assert fate(result, "fp8_recipe")[1] == "without effect there: fp8 is not set"


def test_megatron_s_other_balancing_losses(megatron: Callable[..., Import]) -> None:
    experts = ("num_experts: 8", "moe_router_topk: 2", "moe_ffn_hidden_size: 128")
    result = megatron(*experts, "moe_router_load_balancing_type: seq_aux_loss", "moe_aux_loss_coeff: 1e-4")
    assert fate(result, "moe_router_load_balancing_type")[0] == (
        "moe.balance",
        "megatron.transformer.moe_router_load_balancing_type",
    )


def test_torchtitan_s_own_keys(titan: Callable[..., Import]) -> None:
    result = titan(
        "compile: {enable: true, components: [model]}",
        "debug: {moe_force_load_balance: true, detect_anomaly: true}",
        "parallelism: {fsdp_reshard_after_forward: always}",
        "training.gc_frequency: 3",
    )
    experiment = accepted(result).experiment
    assert experiment.compile is True
    assert experiment.native["torchtitan"] == {
        "compile": {"components": ["model"]},
        "debug": {"detect_anomaly": True, "moe_force_load_balance": True},
        "parallelism": {"fsdp_reshard_after_forward": "always"},
    }
    assert reason(result, "training.gc_frequency") == "unknown key (did you mean training.gc_freq?)"
