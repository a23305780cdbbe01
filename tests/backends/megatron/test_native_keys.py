"""Megatron's own keys at work, on a CPU: those that change how a step is computed leave the losses as they are, the
others change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gang import Case, Ran, run_gang
from megatron_plans import own
from tiny import DEEPSEEK_V3, make, make_dataset

MIXTURE: dict[str, Any] = {"model": DEEPSEEK_V3, "moe__balance": "none"}
BALANCED: dict[str, Any] = {"model": DEEPSEEK_V3, "moe__balance": "aux_loss", "moe__aux_loss_coeff": 1.0}
HALF: dict[str, Any] = {"precision": "bf16"}
PIPELINE: dict[str, Any] = {"parallel__pipeline": 2}
INTERLEAVED: dict[str, Any] = {**PIPELINE, "parallel__virtual_pipeline": 2, "train__micro_batch_size": 1}
LAYOUT = [["embedding", "decoder", "decoder", "decoder"], ["decoder", "loss"]]

Kind = tuple[int, dict[str, Any], dict[str, Any]]
"""Processes, the experiment, and native keys."""

SAME: dict[str, Kind] = {
    "block": (1, {"recompute": "full"}, {"transformer__recompute_method": "block"}),
    "units": (1, {"recompute": "full"}, {"transformer__recompute_num_layers": 2}),
    "mlp": (1, {"recompute": "selective"}, {"transformer__recompute_modules": ["core_attn", "mlp"]}),
    "deterministic": (1, {}, {"transformer__deterministic_mode": True}),
    "watched": (1, {}, {"ddp__check_for_nan_in_grad": True, "ddp__check_for_large_grads": True}),
    "experts again": (
        1,
        {**MIXTURE, "recompute": "selective"},
        {"transformer__recompute_modules": ["moe", "shared_experts", "mla_up_proj"]},
    ),
    "allgather": (1, MIXTURE, {"transformer__moe_token_dispatcher_type": "allgather"}),
    "shared beside": (1, MIXTURE, {"transformer__moe_shared_expert_overlap": True}),
    "wide router": (1, MIXTURE, {"transformer__moe_router_dtype": "fp64"}),
    "overlap": (2, {}, {"ddp__overlap_grad_reduce": True, "ddp__bucket_size": 10000}),
    "gather": (2, {}, {"ddp__overlap_grad_reduce": True, "ddp__overlap_param_gather": True}),
    "padded": (2, {}, {"ddp__pad_buckets_for_high_nccl_busbw": True}),
    "not cloned": (2, {"parallel__tensor": 2}, {"transformer__clone_scatter_output_in_embedding": False}),
    "layout": (2, PIPELINE, {"transformer__pipeline_model_parallel_layout": LAYOUT}),
    "first": (2, PIPELINE, {"transformer__num_layers_in_first_pipeline_stage": 1}),
    "counted": (
        2,
        PIPELINE,
        {
            "transformer__account_for_embedding_in_pipeline_split": True,
            "transformer__account_for_loss_in_pipeline_split": True,
        },
    ),
    "rounds": (2, INTERLEAVED, {"transformer__microbatch_group_size_per_vp_stage": 4}),
    "flush": (2, INTERLEAVED, {"transformer__overlap_p2p_comm_warmup_flush": True}),
    "in turn": (2, INTERLEAVED, {"transformer__overlap_p2p_comm": False}),
    "spread allgather": (
        2,
        {**MIXTURE, "parallel__expert": 2},
        {"transformer__moe_token_dispatcher_type": "allgather"},
    ),
}
OTHER: dict[str, Kind] = {
    "z loss": (1, MIXTURE, {"transformer__moe_z_loss_coeff": 1.0}),
    "forced": (1, MIXTURE, {"transformer__moe_router_force_load_balancing": True}),
    "by sequence": (1, BALANCED, {"transformer__moe_router_load_balancing_type": "seq_aux_loss"}),
    "by all": (1, BALANCED, {"transformer__moe_router_load_balancing_type": "global_aux_loss"}),
    "fused activation": (1, HALF, {"transformer__bias_activation_fusion": True}),
    "fp8 activation": (
        1,
        HALF,
        {"transformer__bias_activation_fusion": True, "transformer__activation_func_fp8_input_store": True},
    ),
    "bf16 gradients": (1, HALF, {"ddp__grad_reduce_in_fp32": False}),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every run by its name, and by ``NAME plain`` the same without the native keys."""
    root = tmp_path_factory.mktemp("native")
    dataset = make_dataset(root / "data" / "chain")
    results: dict[str, Ran] = {}
    for world in (1, 2):
        cases: dict[str, Case] = {}
        bases: dict[str, str] = {}
        for name, (processes, settings, keys) in (SAME | OTHER).items():
            if processes == world:
                bases[name] = f"{name} plain"
                options = {"nproc": world, "backend": "megatron", "train__steps": 3, **settings}
                cases[name] = _case(root, dataset, name, options | own(**keys))
                for other in bases:  # one plain run for all with the same experiment
                    if (SAME | OTHER)[other][1] == settings:
                        bases[name] = f"{other} plain"
                        break
                if bases[name] not in cases:
                    cases[bases[name]] = _case(root, dataset, bases[name], options)
        gang = run_gang(list(cases.values()), world, root / f"gang-{world}")
        results |= {name: gang[cases[name].name] for name in bases}
        results |= {f"{name} plain": gang[cases[base].name] for name, base in bases.items()}
    return results


def _case(root: Path, dataset: Path, name: str, options: dict[str, Any]) -> Case:
    name = name.replace(" ", "-")
    return Case(name, make(root / name, dataset, **options))


@pytest.mark.parametrize("name", SAME)
def test_losses_stay_as_they_are(ran: dict[str, Ran], name: str) -> None:
    assert ran[name].ended().losses == pytest.approx(ran[f"{name} plain"].ended().losses, abs=2e-6, rel=0)


@pytest.mark.parametrize("name", OTHER)
def test_training_becomes_another(ran: dict[str, Ran], name: str) -> None:
    losses, plain = ran[name].ended().losses, ran[f"{name} plain"].ended().losses
    assert losses[3] == pytest.approx(plain[3], abs=0.5)
    assert abs(losses[3] - plain[3]) > 1e-5
