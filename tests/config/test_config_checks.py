"""Contradictions between keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from primus.config.load import Resolved
from primus.errors import Problem

OneProblem = Callable[..., Problem]
Resolve = Callable[..., Resolved]

MLA = "model.kv_lora_rank=16", "model.qk_nope_head_dim=8", "model.qk_rope_head_dim=8", "model.v_head_dim=8"
EXPERTS = "model.num_experts=8", "model.num_experts_per_tok=2", "model.moe_intermediate_size=32"
LLAMA3 = (
    "{rope_type: llama3, factor: 8, original_max_position_embeddings: 128, low_freq_factor: 1, high_freq_factor: 4}"
)


@pytest.mark.parametrize(
    ("overrides", "message", "excerpt"),
    [
        (
            ["resilience.anomaly=rollback"],
            "no checkpoint is made that it could go back to",
            "resilience.anomaly=rollback",
        ),
        (
            ["monitor.mlflow.uri=https://me:secret@host"],
            "holds a name or password, and would end up in plan.json",
            "monitor.mlflow.uri=https://me:secret@host",
        ),
        (["monitor.mlflow.uri=postgresql://host/db"], "of a kind that is not here: postgresql", "monitor.mlflow.uri=postgresql://host/db"),
        (["monitor.mlflow.uri=runs"], "of a kind that is not here: a path", "monitor.mlflow.uri=runs"),
        (["monitor.mlflow.uri=http:///x"], "names no host", "monitor.mlflow.uri=http:///x"),
        (["monitor.mlflow.uri=sqlite://file.db"], "names no file", "monitor.mlflow.uri=sqlite://file.db"),
        (["optimizer.min_lr=1"], "optimizer.min_lr, 1, is above optimizer.lr, 0.001", "optimizer.min_lr=1"),
        (
            ["optimizer.schedule.warmup_steps=100"],
            "100 steps of warm-up leave nothing of train.steps, 100, for the decay",
            "optimizer.schedule.warmup_steps=100",
        ),
        (
            ["optimizer.schedule={warmup_steps: 40, decay_steps: 40}"],
            "leave nothing of optimizer.schedule.decay_steps, 40",
            "optimizer.schedule={warmup_steps: 40, decay_steps: 40}",
        ),
        (["optimizer.schedule.name=wsd"], "wsd needs optimizer.schedule.stable_steps", "optimizer.schedule.name=wsd"),
        (
            ["optimizer.schedule={name: wsd, warmup_steps: 50, stable_steps: 50}"],
            "100 steps of warm-up and stable steps leave nothing",
            "optimizer.schedule={name: wsd, warmup_steps: 50, stable_steps: 50}",
        ),
        (
            ["optimizer.schedule.stable_steps=5"],
            "stable_steps belongs to the schedule wsd",
            "optimizer.schedule.stable_steps=5",
        ),
        (
            ["optimizer.min_lr=1e-4", "optimizer.schedule.name=constant"],
            "optimizer.min_lr has no meaning with a constant schedule",
            "optimizer.min_lr=1e-4",
        ),
        (["profile.steps=[12, 10]"], "profile.steps ends before it begins", "profile.steps=[12, 10]"),
        (["profile.steps=[101, 102]"], "begins at 101, after the last of 100 steps", "profile.steps=[101, 102]"),
        (["profile={steps: [1, 2], ranks: [0, 0]}"], "names a rank twice", "profile={steps: [1, 2], ranks: [0, 0]}"),
        (["model.num_key_value_heads=3"], "4 query heads cannot be shared evenly by 3", "model.num_key_value_heads=3"),
        (
            ["model.num_attention_heads=1000000000000", "model.num_key_value_heads=3", "model.head_dim=8"],
            "1000000000000 query heads cannot be shared evenly by 3",
            "model.num_key_value_heads=3",
        ),
        (
            ["model.model_type=deepseek_v3", *MLA, "model.qk_rope_head_dim=33"],
            "a part of width 33 cannot be rotated",
            "model.qk_rope_head_dim=33",
        ),
        (["model.hidden_size=65"], "hidden_size 65 is not a multiple of 4 heads", "model.hidden_size=65"),
        (["model.head_dim=5"], "heads of width 5 cannot be rotated", "model.head_dim=5"),
        (
            [f"model.rope_scaling={LLAMA3}", "model.rope_scaling.beta_fast=32"],
            "beta_fast belongs to rope_type yarn",
            "model.rope_scaling.beta_fast=32",
        ),
        (
            [f"model.rope_scaling={LLAMA3}", "model.rope_scaling.low_freq_factor=null"],
            "rope_type llama3 needs low_freq_factor",
            None,
        ),
        ([f"model.rope_scaling={LLAMA3}", "model.rope_scaling.low_freq_factor=4"], "below high_freq_factor", None),
        (["model.n_group=2"], "model.n_group has no meaning without model.num_experts", "model.n_group=2"),
        (["model.num_experts=8"], "needs model.num_experts_per_tok", "model.num_experts=8"),
        ([*EXPERTS, "model.num_experts_per_tok=9"], "routed to 9 of 8 experts", "model.num_experts_per_tok=9"),
        ([*EXPERTS, "model.n_group=3"], "8 experts do not divide into 3 groups", "model.n_group=3"),
        (
            ["model.model_type=deepseek_v3", *MLA, *EXPERTS, "model.n_group=8", "model.topk_group=4"],
            "two best experts, and has one in each",
            "model.n_group=8",
        ),
        ([*EXPERTS, "model.n_group=2", "model.topk_group=3"], "3 is more than n_group", "model.topk_group=3"),
        ([*EXPERTS, "model.first_k_dense_replace=3"], "3 dense layers are more than all 2", None),
        (["model.model_type=deepseek_v3", *MLA[1:]], "needs model.kv_lora_rank", "model.model_type=deepseek_v3"),
        (["model.kv_lora_rank=3"], "belongs to deepseek_v2 and deepseek_v3, not to llama", "model.kv_lora_rank=3"),
        (["model.sliding_window=3"], "model.sliding_window belongs to gpt_oss, not to llama", "model.sliding_window=3"),
        (["parallel.virtual_pipeline=2"], "virtual_pipeline needs parallel.pipeline", "parallel.virtual_pipeline=2"),
        (["parallel.schedule=gpipe"], "parallel.schedule needs parallel.pipeline", "parallel.schedule=gpipe"),
        (
            ["parallel.pipeline=2", "parallel.schedule=interleaved_1f1b"],
            "interleaved_1f1b needs parallel.virtual_pipeline",
            "parallel.schedule=interleaved_1f1b",
        ),
        (
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.schedule=1f1b"],
            "1f1b runs one chunk a rank",
            "parallel.schedule=1f1b",
        ),
        (["moe.balance=aux_loss"], "moe.balance has no meaning: the model has no experts", "moe.balance=aux_loss"),
        ([*EXPERTS, "moe.aux_loss_coeff=0.1"], "no meaning with balance: bias", "moe.aux_loss_coeff=0.1"),
        (["eval.interval=3"], "eval.interval has no meaning: data.validation is not set", "eval.interval=3"),
        (["backend=torchtitn"], "there is no backend 'torchtitn'", "backend=torchtitn"),
        (["env.RANK=3"], "env.RANK is set by the launcher", "env.RANK=3"),
        (["env={'A B': x}"], "'A B' cannot be the name of an environment variable", "env={'A B': x}"),
    ],
)  # fmt: skip
def test_contradictions(problem: OneProblem, overrides: list[str], message: str, excerpt: str | None) -> None:
    found = problem("", *overrides)
    assert message in found.message
    assert found.excerpt == (excerpt or found.excerpt)
    assert found.column > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.schedule={name: wsd, warmup_steps: 10, stable_steps: 80}"],
        ["optimizer.schedule={name: constant, warmup_steps: 1000}"],
        ["optimizer.min_lr=1e-3"],
        ["monitor.mlflow.uri=sqlite:///mlflow.db"],
        ["monitor.mlflow.uri=file:mlruns"],
        ["monitor.mlflow.uri=databricks"],
        ["profile.steps=[100, 100]"],
        ["model.head_dim=64", "model.hidden_size=65"],
        [f"model.rope_scaling={LLAMA3}"],
        ["model.model_type=deepseek_v3", *MLA, *EXPERTS, "model.n_group=4", "model.topk_group=2", "moe.balance=none"],
        ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.schedule=interleaved_1f1b"],
        ["eval.interval=3", "data.validation=0.1"],
        # written, but only to the default, as `config show` prints them
        ["moe.balance=bias", "eval.interval=100", "optimizer.schedule.name=constant", "optimizer.min_lr=0"],
    ],
)
def test_what_fits_together(resolve: Resolve, overrides: list[str]) -> None:
    assert resolve("", *overrides).experiment.name == "tiny"


def test_a_contradiction_with_a_preset_points_at_what_can_be_changed(resolve: Resolve, problem: OneProblem) -> None:
    found = problem("extends: recipes/pretrain\n", "train.steps=50")
    assert found.where.endswith("recipes/pretrain.yaml:9:28")
    assert found.remedy == "fewer than 50 steps of warm-up, or a larger train.steps"
