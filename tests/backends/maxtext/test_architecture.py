"""What MaxText cannot compute as asked is refused while planning, with the key and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import DEEPSEEK_V3, GPT_OSS, LLAMA, LLAMA4, MIXTRAL, make

from primus.backends.maxtext import MaxTextBackend
from primus.errors import PlanError

ALONE = {"moe__balance": "none"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": MIXTRAL, "moe__balance": "aux_loss"}, "moe.balance", "of a sequence, not of a micro batch"),
    ({"model": MIXTRAL | {"num_experts": 1, "num_experts_per_tok": 1}, **ALONE}, "model.num_experts", "one expert"),
    ({"model": DEEPSEEK_V3 | {"n_shared_experts": 0}}, "model.n_shared_experts", "have shared experts"),
    ({"model": LLAMA4, **ALONE}, "model_type", "llama4_text"),
    ({"model": GPT_OSS, **ALONE}, "model_type", "gpt_oss"),
    ({"model": LLAMA | {"rope_theta": 10000.5}}, "model.rope_theta", "a whole number"),
    ({"maxtext__sparse_matmul": False}, "maxtext.sparse_matmul", "no experts"),
    ({"model": MIXTRAL, **ALONE, "maxtext__use_sliced_mla_proj": True}, "maxtext.use_sliced_mla_proj", "no latent"),
    ({"model": DEEPSEEK_V3, "maxtext__mla_q": "device", "maxtext__remat_policy": "custom"}, "maxtext.mla_q", "q_lora"),
    ({"maxtext__num_vocab_tiling": 7}, "maxtext.num_vocab_tiling", "7 does not divide"),
    ({"env": {"M_STEPS": "3", "M_OWN": "3"}}, "env.M_STEPS", "have no effect as variables"),
    ({"maxtext__num_vocab_tiling": 0}, "maxtext.num_vocab_tiling", "0 does not divide"),
    ({"maxtext__logical_axis_rules": [["embd", ["tensor"]]]}, "maxtext.logical_axis_rules", "no dimension 'embd'"),
    ({"maxtext__logical_axis_rules": [["embed", "tensr"]]}, "maxtext.logical_axis_rules", "no axis of the mesh"),
    ({"maxtext__logical_axis_rules_for_eval": ["embed"]}, "maxtext.logical_axis_rules_for_eval", "'embed' is no rule"),
    ({"maxtext__input_data_sharding_logical_axes": [3]}, "input_data_sharding_logical_axes", "no dimension '3'"),
    (
        {"model": MIXTRAL, **ALONE, "maxtext__sparse_matmul": False, "maxtext__use_custom_sort_vjp": False},
        "maxtext.use_custom_sort_vjp",
        "computes all tokens",
    ),
]


@pytest.mark.parametrize(("options", "key", "words"), REFUSED)
def test_it_is_refused(tmp_path: Path, options: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        make(tmp_path, "synthetic", backend="maxtext", **options)
    (problem,) = caught.value.problems
    assert key in problem.where or key in problem.message
    assert words in problem.message


def test_masked_targets_do_not_weigh_an_auxiliary_loss(tmp_path: Path) -> None:
    options = {"model": MIXTRAL, "moe__balance": "aux_loss", "train__micro_batch_size": 1}
    plan = make(tmp_path, "synthetic", backend="maxtext", **options)
    masked = plan.data.model_copy(update={"mask_eod": True})
    with pytest.raises(PlanError, match="unmasked targets"):
        MaxTextBackend().plan(plan.experiment, plan.topology, masked)


def test_a_plan_lists_the_patches_that_its_model_needs(tmp_path: Path) -> None:
    def patches(name: str, **options: Any) -> list[str]:
        plan = make(tmp_path / name, "synthetic", backend="maxtext", **options)
        assert all(patch.versions and patch.reason and patch.removal for patch in plan.patches)
        return [patch.target.rpartition(".")[2] for patch in plan.patches]

    assert patches("plain") == []
    assert patches("tied", model=LLAMA | {"tie_word_embeddings": True}) == ["attend_on_embedding"]
    assert patches("mixture", model=MIXTRAL, **ALONE) == ["RoutedMoE"]
    assert patches("latent", model=DEEPSEEK_V3) == ["init_rotary_embedding", "_init_projections", "RoutedMoE"]


def test_fp32_on_an_accelerator_is_not_rounded(tmp_path: Path) -> None:
    def env(precision: str, **hardware: str) -> dict[str, str]:
        plan = make(tmp_path / precision, "synthetic", backend="maxtext", precision=precision, hardware=hardware)
        return plan.env

    assert env("fp32", name="GPU", device="cuda")["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert "JAX_DEFAULT_MATMUL_PRECISION" not in env("bf16", name="GPU", device="cuda")
