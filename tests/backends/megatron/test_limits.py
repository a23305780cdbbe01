"""What Megatron cannot do as asked is refused while planning, all of it at once and with a way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gang
import pytest
from gang import SOURCES
from megatron_next import overlay
from megatron_plans import DATA, GPU, own, plan, refused
from tiny import DEEPSEEK_V3, LLAMA, LLAMA4, MIXTRAL

ROCM = {"hardware": GPU, "precision": "bf16"}
WIDE = DATA.model_copy(update={"document_attention": "within"})
INTERLEAVED = {"parallel__virtual_pipeline": 2}


def test_ranks_that_do_not_divide() -> None:
    assert "rows of the embedding" in refused({"tensor": 2}, model=LLAMA | {"vocab_size": 255})["parallel.tensor"]
    odd = DEEPSEEK_V3 | {"moe_intermediate_size": 33, "n_shared_experts": 2}
    text = refused({"tensor": 2}, model=odd)["parallel.tensor"]
    assert "experts of width 33" in text
    assert "parallel.expert: 2 or more" in text
    assert plan({"tensor": 2, "expert": 2}, model=odd)
    shared = refused({"tensor": 2, "expert": 2}, model=odd | {"n_shared_experts": 1})["parallel.tensor"]
    assert "shared experts of width 33" in shared


@pytest.mark.parametrize(
    ("sizes", "length", "unit"),
    [({"context": 2}, 62, 4), ({"context": 4}, 60, 8), ({"context": 2, "tensor": 2}, 62, 4)],
)
def test_sequences_that_do_not_divide(sizes: dict[str, int], length: int, unit: int) -> None:
    text = refused(sizes, train__seq_length=length)["train.seq_length"]
    assert f"{length} tokens do not divide by {unit} " in text
    for offered in text.rpartition("train.seq_length: ")[2].rstrip(")").split(" or "):
        assert plan(sizes, train__seq_length=int(offered))


def test_interleaved_schedules_take_whole_rounds() -> None:
    text = refused({"pipeline": 2, "microbatches": 5}, **INTERLEAVED)["train.global_batch_size"]
    assert "5 are not whole rounds" in text
    assert "4 or 6" in text
    assert plan({"pipeline": 2, "microbatches": 5})  # 1f1b takes any number
    group = own(transformer__microbatch_group_size_per_vp_stage=3)
    assert plan({"pipeline": 2, "microbatches": 5}, native=group, **INTERLEAVED)
    bad = refused({"pipeline": 2, "microbatches": 7}, native=group, **INTERLEAVED)
    assert set(bad) == {"megatron.transformer.microbatch_group_size_per_vp_stage"}


def test_llama4() -> None:
    assert "one" in refused(model=LLAMA4)["model.num_experts_per_tok"]
    single = LLAMA4 | {"num_experts_per_tok": 1}
    assert plan(model=single)
    assert set(refused(model=single, data=WIDE)) == {"data.document_attention"}
    assert plan(data=WIDE)


def transformer(**keys: Any) -> dict[str, Any]:
    return own(**{f"transformer__{name}": value for name, value in keys.items()})


def ddp(**keys: Any) -> dict[str, Any]:
    return own(**{f"ddp__{name}": value for name, value in keys.items()})


LAYOUT = [["embedding", "decoder"], ["decoder", "decoder", "decoder", "loss"]]


@pytest.mark.parametrize(
    ("key", "value", "sizes", "overrides"),
    [
        ("transformer.batch_p2p_comm", True, {}, ROCM),
        ("transformer.deallocate_pipeline_outputs", True, {}, ROCM),
        ("transformer.pipeline_model_parallel_layout", LAYOUT, {}, {}),
        ("transformer.num_layers_in_first_pipeline_stage", 1, {}, {}),
        ("transformer.account_for_loss_in_pipeline_split", True, {}, {}),
        ("transformer.overlap_p2p_comm", True, {"pipeline": 2}, {}),
        ("transformer.microbatch_group_size_per_vp_stage", 2, {"pipeline": 2}, {}),
        ("transformer.moe_z_loss_coeff", 1e-3, {}, {}),
        ("transformer.moe_token_dispatcher_type", "allgather", {}, {}),
        ("transformer.expert_tensor_parallel_size", 1, {"tensor": 2}, {"model": DEEPSEEK_V3}),
        ("transformer.moe_router_load_balancing_type", "seq_aux_loss", {}, {"model": DEEPSEEK_V3}),
        ("transformer.moe_router_bias_update_rate", 0.1, {}, {"model": DEEPSEEK_V3, "moe__balance": "none"}),
        ("transformer.moe_shared_expert_overlap", True, {}, {"model": MIXTRAL}),
        ("transformer.recompute_num_layers", 2, {}, {"recompute": "selective"}),
        ("transformer.recompute_method", "block", {}, {}),
        ("transformer.recompute_modules", ["mlp"], {}, {"recompute": "full"}),
        ("transformer.recompute_modules", [], {}, {"recompute": "selective"}),
        ("transformer.recompute_modules", ["layernorm"], {}, {"recompute": "selective"}),
        ("transformer.recompute_modules", ["moe"], {}, {"recompute": "selective"}),
        ("transformer.clone_scatter_output_in_embedding", True, {}, {}),
        ("ddp.overlap_grad_reduce", True, {"tensor": 2}, {}),
        ("ddp.overlap_param_gather", True, {"data_replicate": 2}, {}),
        ("ddp.overlap_param_gather", True, {"data_shard": 2}, {}),
        ("ddp.bucket_size", 1000, {"data_shard": 2}, {}),
        ("ddp.align_param_gather", True, {"data_shard": 2}, {}),
        ("ddp.grad_reduce_in_fp32", True, {}, {}),
        ("ddp.reduce_scatter_with_fp32_accumulation", True, {"data_shard": 2}, {"precision": "bf16"}),
        ("transformer.cross_entropy_loss_fusion", True, {}, {}),
        ("transformer.cross_entropy_fusion_impl", "te", {}, ROCM),
        ("transformer.activation_func_fp8_input_store", True, {}, {"precision": "bf16"}),
        ("transformer.gradient_accumulation_fusion", True, {}, {}),
        ("transformer.bias_dropout_fusion", True, {}, {}),
        ("transformer.apply_rope_fusion", True, {}, {}),
        ("transformer.apply_rope_fusion", True, {}, {**ROCM, "model": DEEPSEEK_V3}),
        ("transformer.batch_p2p_comm", True, {"pipeline": 2}, {}),
        ("transformer.batch_p2p_comm", True, {"pipeline": 2}, {**ROCM, **INTERLEAVED}),
        ("transformer.batch_p2p_sync", True, {"pipeline": 2}, {}),
        ("transformer.moe_permute_fusion", True, {}, {"model": MIXTRAL}),
        ("transformer.moe_token_dispatcher_type", "flex", {}, {"model": MIXTRAL}),
        ("transformer.moe_token_dispatcher_type", "flex", {}, {**ROCM, "model": MIXTRAL}),
        ("transformer.moe_flex_dispatcher_backend", "hybridep", {}, {**ROCM, "model": MIXTRAL}),
        ("transformer.moe_token_dispatcher_type", "allgather", {}, {"model": MIXTRAL, "moe__dispatcher": "alltoall"}),
        ("transformer.moe_z_loss_coeff", -1.0, {}, {"model": MIXTRAL}),
    ],
)
def test_a_key_that_would_do_nothing_or_fail_is_refused(
    key: str, value: Any, sizes: dict[str, int], overrides: dict[str, Any]
) -> None:
    problems = refused(sizes, native=own(**{key.replace(".", "__"): value}), **overrides)
    assert set(problems) == {f"megatron.{key}"}
    assert not problems[f"megatron.{key}"].endswith("()"), "no remedy"


@pytest.mark.parametrize(
    ("native", "sizes", "overrides"),
    [
        (transformer(batch_p2p_comm=False, pipeline_model_parallel_layout=LAYOUT), {"pipeline": 2}, {}),
        (transformer(recompute_method="block", recompute_num_layers=3), {}, {"recompute": "full"}),
        (transformer(recompute_num_layers=2), {"pipeline": 2}, {"recompute": "full"}),
        (transformer(recompute_modules=["core_attn", "mlp"]), {}, {"recompute": "selective"}),
        (
            transformer(recompute_modules=["moe", "shared_experts", "mla_up_proj", "mlp"]),
            {},
            {"recompute": "selective", "model": DEEPSEEK_V3},
        ),
        (
            transformer(moe_router_load_balancing_type="seq_aux_loss"),
            {},
            {"model": MIXTRAL, "moe__balance": "aux_loss"},
        ),
        (transformer(moe_router_bias_update_rate=0.01), {}, {"model": MIXTRAL}),
        (transformer(moe_shared_expert_overlap=True, moe_z_loss_coeff=1e-3), {}, {"model": DEEPSEEK_V3}),
        (
            transformer(expert_tensor_parallel_size=2, moe_token_dispatcher_type="allgather"),
            {"tensor": 2, "expert": 2, "data_shard": 2},
            {"model": DEEPSEEK_V3},
        ),
        (
            transformer(
                moe_token_dispatcher_type="flex", moe_flex_dispatcher_backend="hybridep", moe_hybridep_num_sms=8
            ),
            {"data_shard": 2, "expert": 2},
            {**ROCM, "model": MIXTRAL},
        ),
        (transformer(overlap_p2p_comm_warmup_flush=True), {"pipeline": 2}, INTERLEAVED),
        (transformer(overlap_p2p_comm=False, batch_p2p_comm=True), {"pipeline": 2}, {**ROCM, **INTERLEAVED}),
        (transformer(apply_rope_fusion=True, gradient_accumulation_fusion=True), {}, ROCM),
        (transformer(cross_entropy_loss_fusion=True), {}, {"precision": "bf16"}),
        (transformer(cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="te"), {}, ROCM),
        (transformer(bias_activation_fusion=True), {}, {}),
        (ddp(overlap_grad_reduce=True, overlap_param_gather=True, bucket_size=10), {"data_shard": 2}, {}),
        (ddp(align_param_gather=True), {"data_shard": 2, "pipeline": 2}, {**ROCM, **INTERLEAVED}),
        (ddp(overlap_grad_reduce=False, overlap_param_gather=False), {"data_shard": 2}, ROCM),
        (
            ddp(grad_reduce_in_fp32=False, reduce_scatter_with_fp32_accumulation=True),
            {"data_shard": 2},
            {"precision": "bf16"},
        ),
        (ddp(check_for_nan_in_grad=True, check_for_large_grads=True), {}, {}),
    ],
)
def test_keys_that_can_be_honoured(native: dict[str, Any], sizes: dict[str, int], overrides: dict[str, Any]) -> None:
    planned = plan(sizes, native=native, **overrides)
    for section, values in native["megatron"].items():
        assert values.items() <= planned[section].items()


def test_switching_off_what_is_on_names_what_depends_on_it() -> None:
    text = refused({"data_shard": 2}, native=ddp(overlap_grad_reduce=False), **ROCM)
    assert set(text) == {"megatron.ddp.overlap_grad_reduce"}
    assert "megatron.ddp.overlap_param_gather: false" in text["megatron.ddp.overlap_grad_reduce"]


def test_units_of_recomputation() -> None:
    key = "megatron.transformer.recompute_num_layers"
    text = refused(native=transformer(recompute_num_layers=3), recompute="full")[key]
    assert "stages of 4 layers" in text
    assert "(1 or 2 or 4)" in text
    uneven = {"pipeline": 2}
    assert key in refused(uneven, native=transformer(recompute_num_layers=2), recompute="full", model=FIVE)
    block = transformer(recompute_method="block", recompute_num_layers=4)
    assert "(3 at most)" in refused(uneven, native=block, recompute="full", model=FIVE)[key]


FIVE = LLAMA | {"num_hidden_layers": 5}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (LAYOUT[:1], "it has 1 stages"),
        ([], "it has 0 stages"),
        ([["embedding", "decoder"], ["decoder", "loss"]], "it places 2 layers of 4"),
        ([["decoder", "embedding"], ["decoder"] * 3 + ["loss"]], "begins with the one embedding"),
        ([["embedding", "mtp"], ["decoder"] * 4 + ["loss"]], "the words embedding, decoder and loss"),
        (["Ett", "ttL"], "the words embedding, decoder and loss"),
    ],
)
def test_layouts_that_are_none(layout: list[Any], said: str) -> None:
    key = "pipeline_model_parallel_layout"
    text = refused({"pipeline": 2}, native=transformer(**{key: layout}))[f"megatron.transformer.{key}"]
    assert said in text
    assert "[['embedding', 'decoder', 'decoder'], ['decoder', 'decoder', 'loss']]" in text


def test_layers_are_split_in_one_way() -> None:
    keys = transformer(pipeline_model_parallel_layout=LAYOUT, num_layers_in_last_pipeline_stage=1)
    assert set(refused({"pipeline": 2}, native=keys)) == {"megatron.transformer.num_layers_in_last_pipeline_stage"}


def test_everything_wrong_is_said_at_once() -> None:
    problems = refused(
        {"context": 2, "pipeline": 2, "microbatches": 3},
        train__seq_length=62,
        native=own(transformer__moe_z_loss_coeff=1.0, transformer__recompute_modules=["mlp"], ddp__bucket_size=1),
        **INTERLEAVED,
    )
    assert set(problems) == {
        "train.seq_length",
        "train.global_batch_size",
        "megatron.transformer.moe_z_loss_coeff",
        "megatron.transformer.recompute_modules",
        "megatron.ddp.bucket_size",
    }


SPLIT_AS_MEGATRON = """
import itertools, json, warnings
warnings.filterwarnings("ignore")
from primus.backends.megatron import patches, split
patches.apply(patches.for_device("cpu"))
import torch
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_plans import experiment, topology
from tiny import LLAMA

ends = (None, 1, 2, 3, 4)
different, taken = [], 0
for layers, ranks, virtual in itertools.product((4, 5, 6, 8, 10), (2, 3), (1, 2)):
    if layers < ranks * virtual:
        continue
    asked = experiment(
        model=LLAMA | {"num_hidden_layers": layers}, parallel__pipeline=ranks, parallel__virtual_pipeline=virtual
    )
    on = topology(pipeline=ranks)
    for first, last, embedding, loss in itertools.product(ends, ends, (False, True), (False, True)):
        keys = dict(zip((*split.ENDS, *split.COUNTED), (first, last, embedding, loss)))
        sizes = None if list(split.problems(asked, on, keys)) else split.layers_of_stages(asked, on, keys)
        if not any(keys.values()) and layers % (ranks * virtual):
            continue  # laid out by the plan
        try:
            config = TransformerConfig(
                num_layers=layers, hidden_size=8, num_attention_heads=2, pipeline_model_parallel_size=ranks,
                virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None, pipeline_dtype=torch.float32,
                **keys,
            )
            theirs = [
                get_num_layers_to_build(config, vp_stage=chunk if virtual > 1 else None, pp_rank=rank)
                for chunk in range(virtual) for rank in range(ranks)
            ]
        except (AssertionError, ValueError):
            theirs = None
        if theirs and min(theirs) < 0:
            theirs = None  # Megatron does not look at it
        taken += theirs is not None
        if theirs != sizes:
            different.append([layers, ranks, virtual, keys, sizes, theirs])
print(json.dumps([taken, different[:10]]))
"""


@pytest.mark.parametrize("newer", [False, True], ids=["of the lock", "newer"])
def test_splits_are_those_that_megatron_takes(newer: bool) -> None:
    path = os.pathsep.join([*([str(overlay())] if newer else []), str(SOURCES), str(Path(gang.__file__).parent)])
    command = [sys.executable, "-c", SPLIT_AS_MEGATRON]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    taken, different = json.loads(done.stdout.splitlines()[-1])
    assert not different
    assert taken > 50
