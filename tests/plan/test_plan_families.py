"""What the planner says of families of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from primus.errors import PlanError
from primus.plan.plan import Plan

NEW = {
    "tiny_qwen2": "qwen2",
    "tiny_qwen3_moe": "qwen3_moe",
    "tiny_mixtral": "mixtral",
    "tiny_llama4": "llama4_text",
    "tiny_deepseek_v2": "deepseek_v2",
    "deepseek_v2": "deepseek_v2",
    "llama4_scout_17B_16E": "llama4_text",
}


def refused(plan: Callable[..., Plan], *overrides: str, **keywords: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(*overrides, **keywords)
    return [f"{problem.message} | {problem.remedy}" for problem in caught.value.problems]


@pytest.mark.parametrize("model", NEW)
def test_torchtitan_plans_every_family(plan: Callable[..., Plan], model: str) -> None:
    assert plan(model=model).experiment.model.model_type == NEW[model]


@pytest.mark.parametrize(
    ("model", "override", "expected"),
    [
        ("tiny_mixtral", "model.moe_intermediate_size=64", "a mixtral model has no such thing"),
        ("tiny_mixtral", "model.norm_topk_prob=false", "mixtral routes by a softmax over the chosen experts"),
        ("tiny_qwen3_moe", "model.n_shared_experts=1", "a qwen3_moe model has no such thing"),
        ("tiny_qwen3_moe", "model.scoring_func=sigmoid", "qwen3_moe routes by a softmax over all experts"),
        ("tiny_llama4", "model.scoring_func=softmax", "llama4_text routes by the sigmoid"),
        ("tiny_llama4", "model.n_shared_experts=2", "a llama4_text model always has 1"),
        ("tiny_llama4", "model.first_k_dense_replace=1", "a llama4_text model has no such thing"),
        ("tiny_deepseek_v2", "model.norm_topk_prob=true", "not normalised over the chosen"),
        ("tiny_deepseek_v2", "model.num_key_value_heads=2", "latent attention has one for each of 4 query heads"),
        ("tiny_deepseek_v2", "model.num_experts_per_tok=5", "topk_group 1 of 2 groups hold 4 experts"),
    ],
)
def test_what_a_family_fixes(plan: Callable[..., Plan], model: str, override: str, expected: str) -> None:
    said = refused(plan, override, model=model)
    found = [line for line in said if expected in line]
    assert len(found) == 1
    assert override.partition("=")[0] in found[0]
    assert not found[0].endswith("| ")


def test_a_dense_family_has_no_experts(plan: Callable[..., Plan]) -> None:
    experts = ("model.num_experts=4", "model.num_experts_per_tok=2", "model.moe_intermediate_size=64")
    said = refused(plan, *experts, model="tiny_qwen2")
    assert [line for line in said if "no such thing" in line] == [
        "model.num_experts: a qwen2 model has no such thing | remove it, or take a family with experts: "
        "qwen3_moe, mixtral, llama4_text, deepseek_v2, deepseek_v3, gpt_oss"
    ]


def test_experts_are_not_left_out_of_a_mixture(plan: Callable[..., Plan]) -> None:
    names = ("num_experts", "num_experts_per_tok", "scoring_func", "norm_topk_prob")
    said = refused(plan, *(f"model.{name}=null" for name in names), model="tiny_mixtral")
    assert "a mixtral model has experts | set model.num_experts" in said


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny_llama4", "parallel.tensor: 3 does not divide 4 query heads"),
        ("tiny_deepseek_v2", "parallel.tensor: 3 does not divide 4 query heads"),
    ],
)
def test_tensor_parallel_sizes(plan: Callable[..., Plan], model: str, expected: str) -> None:
    said = refused(plan, "parallel.tensor=3", "train.seq_length=510", model=model, nproc=3)
    assert any(line.startswith(expected) for line in said)


def test_the_dense_layers_of_llama4_have_a_width_of_their_own(plan: Callable[..., Plan]) -> None:
    said = refused(plan, "parallel.tensor=2", "model.intermediate_size_mlp=255", model="tiny_llama4", nproc=2)
    assert any("does not divide 255 intermediate_size_mlp" in line for line in said)
