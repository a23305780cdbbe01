"""What MaxText cannot lay out is refused while planning, with a way out that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny import DEEPSEEK_V3, LLAMA, MIXTRAL, QWEN3, make

from primus.errors import PlanError
from primus.plan.plan import Plan

ONE_SAMPLE = {"train__micro_batch_size": 1}
WIDE = LLAMA | {"hidden_size": 27 * 8, "head_dim": 16}
THIRTEEN = {"train__micro_batch_size": 13, "train__global_batch_size": 13 * 9}
ON_GPUS = {"hardware": {"name": "MI300X", "device": "rocm"}, "precision": "bf16"}
UNBALANCED = {**ONE_SAMPLE, "moe__balance": "none"}
THREE_SHARDS = {"parallel__data_replicate": 3, **ONE_SAMPLE, "train__global_batch_size": 6}


def plan(tmp_path: Path, **options: Any) -> Plan:
    return make(tmp_path / "run", "synthetic", backend="maxtext", **options)


def refused(tmp_path: Path, **options: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, **options)
    return [f"{problem.where}: {problem.message} ({problem.remedy})" for problem in caught.value.problems]


def test_the_axes_become_a_mesh_of_all_devices(tmp_path: Path) -> None:
    options = {"parallel__data_replicate": 2, "parallel__context": 2, "parallel__pipeline": 2, "parallel__tensor": 2}
    native = plan(tmp_path, nproc=16, **options, parallel__virtual_pipeline=2, train__micro_batch_size=1).native
    assert {key: native[key] for key in native if key.startswith(("ici", "num_p", "num_l"))} == {
        "ici_data_parallelism": 2,
        "ici_pipeline_parallelism": 2,
        "ici_fsdp_parallelism": 1,
        "ici_expert_parallelism": 1,
        "ici_context_parallelism": 2,
        "ici_tensor_parallelism": 2,
        "num_pipeline_microbatches": 4,
        "num_pipeline_repeats": 2,
        "num_layers_per_pipeline_stage": 1,
    }
    assert native["per_device_batch_size"] * 16 == 8
    assert native["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("device", ["cpu", "rocm"])
def test_experts_are_spread_over_a_part_of_data_shard(device: str, tmp_path: Path) -> None:
    on = {} if device == "cpu" else ON_GPUS
    native = plan(tmp_path, nproc=8, parallel__tensor=2, parallel__expert=2, model=MIXTRAL, **ONE_SAMPLE, **on).native
    sizes = [native[f"ici_{axis}_parallelism"] for axis in ("fsdp", "expert", "tensor")]
    assert sizes == [2, 2, 2]
    assert native["per_device_batch_size"] * 8 == 4, "experts share no samples"
    assert native["sparse_matmul"] == (device != "cpu"), "a CPU cannot send tokens"


def test_flags_of_the_compiler_are_the_users(tmp_path: Path) -> None:
    assert "XLA_FLAGS" not in plan(tmp_path, nproc=2).env
    assert plan(tmp_path, nproc=2, env={"XLA_FLAGS": "--xla_a=1"}).env["XLA_FLAGS"] == "--xla_a=1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"nproc": 3, "train__global_batch_size": 6, "train__micro_batch_size": 1},
            "parallel.data_shard: .*data_shard 3 does not divide hidden_size 64.*(parallel.data_shard: 2 or 4; .*)",
        ),
        (
            {"nproc": 6, "parallel__context": 3, "train__seq_length": 48, "train__micro_batch_size": 1},
            "parallel.context: .*data_shard 2 x context 3 does not divide hidden_size 64.*context: 2 or 4; .*",
        ),
        (
            {"nproc": 2, "parallel__tensor": 2, "model": LLAMA | {"vocab_size": 257}},
            "parallel.tensor: .*2 does not divide vocab_size 257 (parallel.tensor: 1)",
        ),
        (
            {
                "nproc": 4,
                "parallel__tensor": 4,
                "model": QWEN3 | {"tie_word_embeddings": False, "head_dim": 18, "num_key_value_heads": 4},
            },
            "parallel.tensor: .*4 does not divide head_dim 18 (parallel.tensor: 2)",
        ),
        (
            {"nproc": 4, "parallel__tensor": 4},
            "parallel.tensor: .*4 does not divide 2 key/value heads (parallel.tensor: 2)",
        ),
        (
            {"nproc": 2, "parallel__context": 2, "train__seq_length": 63},
            "train.seq_length: .*63 does not divide by context 2.*(train.seq_length: 62 or 64)",
        ),
        (
            {"nproc": 3, "parallel__pipeline": 3, "train__micro_batch_size": 1, "train__global_batch_size": 9},
            "parallel.pipeline: .*pipeline 3 stages do not share 4 layers evenly (parallel.pipeline: 2 or 4)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "parallel__virtual_pipeline": 4, "train__micro_batch_size": 1},
            "pipeline 2 x virtual_pipeline 4 = 8 stages for 4 layers (4 stages at most)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "train__micro_batch_size": 8},
            "train.global_batch_size: .*rounds of 2, and 1 are not.*(train.global_batch_size: 16; or another .*)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "parallel__schedule": "1f1b"},
            "parallel.schedule: .*1f1b, but MaxText runs all microbatches forward.*(gpipe, or remove it)",
        ),
        (
            {"nproc": 2, "parallel__data_shard": 2, "parallel__tensor": 2},
            "data_shard 2 x tensor 2 = 4, but there are 2 processes.*",
        ),
        (
            {"nproc": 5, "model": DEEPSEEK_V3, "train__global_batch_size": 5, "train__micro_batch_size": 1},
            "parallel.data_shard: .*5 does not divide hidden_size 64.*",
        ),
        (
            {"nproc": 2, "parallel__tensor": 2, "model": MIXTRAL | {"intermediate_size": 33}, **UNBALANCED},
            "parallel.tensor: .*2 does not divide the width of experts 33 (parallel.tensor: 1)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "model": DEEPSEEK_V3 | {"num_hidden_layers": 4}, **UNBALANCED},
            "parallel.pipeline: .*two kinds of layers that deepseek_v3 has .*",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "model": MIXTRAL, **UNBALANCED},
            "parallel.virtual_pipeline: .*hold experts only without virtual stages (parallel.virtual_pipeline: 1)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "model": MIXTRAL, **ONE_SAMPLE},
            "moe.balance: .*no biases of experts (moe.balance: none, or .*)",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "model": MIXTRAL, "moe__balance": "aux_loss", **ONE_SAMPLE},
            "moe.balance: .*auxiliary losses of idle stages too.*",
        ),
        (
            {"nproc": 2, "parallel__context": 2, "parallel__expert": 2, "model": MIXTRAL, **UNBALANCED},
            "parallel.expert: .*2 does not divide data_shard 1; .*(parallel.expert: 1, or a larger data_shard)",
        ),
        (
            {"nproc": 6, "nnodes": 2, "parallel__tensor": 2, "parallel__expert": 2, "model": MIXTRAL, **THREE_SHARDS},
            "parallel.expert: .*tensor 2 x expert 2 does not divide the 6 devices of a node (parallel.expert: 1; .*)",
        ),
        (
            {"nproc": 4, "parallel__pipeline": 2, "parallel__expert": 2, "model": MIXTRAL, **UNBALANCED, **ON_GPUS},
            "parallel.expert: .*sending tokens to experts in a pipeline, .*maxtext.sparse_matmul: false)",
        ),
        (
            {"nproc": 2, "parallel__expert": 2, "model": MIXTRAL, **UNBALANCED, "maxtext__sparse_matmul": True},
            "maxtext.sparse_matmul: .*cannot send tokens to experts on CPUs.*(false, or remove it)",
        ),
        (
            {"nproc": 2, "parallel__expert": 2, "model": MIXTRAL, **UNBALANCED, "maxtext__use_custom_sort_vjp": False},
            "maxtext.use_custom_sort_vjp: .*every expert computes all tokens with sparse_matmul: false (remove it)",
        ),
        (
            {"nproc": 27, "parallel__context": 3, "model": WIDE, "train__seq_length": 48, **THIRTEEN},
            "train.micro_batch_size: .*4.33333 is not exact (train.micro_batch_size: a multiple of 3)",
        ),
        (
            {"nproc": 2, "parallel__context": 2, "maxtext__attention": "flash", **ON_GPUS},
            "maxtext.attention: .*does not split a sequence.*(dot_product, or parallel.context: 1)",
        ),
        (
            {"nproc": 2, "maxtext__scan_pipeline_iterations": False},
            "maxtext.scan_pipeline_iterations: .*counts in a pipeline only.*",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "maxtext__pipeline_delay_activation_forwarding": True},
            "maxtext.pipeline_delay_activation_forwarding: .*needs 4 microbatches, .*there are 2.*",
        ),
        (
            {"nproc": 2, "parallel__pipeline": 2, "maxtext__pipeline_fsdp_ag_per_repeat": True},
            "maxtext.pipeline_fsdp_ag_per_repeat: .*(parallel.virtual_pipeline: 2, or remove it)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, **options)
    assert re.search(expected.replace("(", r"\(").replace(")", r"\)"), problem), problem


def test_everything_is_refused_at_once(tmp_path: Path) -> None:
    options = {"parallel__pipeline": 3, "parallel__schedule": "1f1b", "model": LLAMA | {"vocab_size": 257}}
    found = refused(tmp_path, nproc=6, parallel__tensor=2, train__micro_batch_size=1, **options)
    assert len(found) == 4, found
