"""Families of models: their config.json beyond plain keys, and which fields are theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.config import huggingface, layers
from primus.config.experiment import Model
from primus.config.load import Resolved
from primus.errors import ConfigError, Problem

OneProblem = Callable[..., Problem]
Resolve = Callable[..., Resolved]

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA4 = {**SIZES, "model_type": "llama4_text"}
DEEPSEEK = {**SIZES, "model_type": "deepseek_v2", "num_experts_per_tok": 2}

SCOUT = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "model_type": "llama4",
    "text_config": {
        **LLAMA4,
        "attn_temperature_tuning": 4,
        "for_llm_compressor": False,
        "moe_layers": list(range(8)),
        "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0],
        "rope_scaling": {
            "factor": 16.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "tie_word_embeddings": False,
    "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 16},
}
"""Shaped like the published ones, which spell a truth value as 4 and list every layer."""


def read(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return huggingface.from_config({**config, **changes}, "somewhere/config.json")


def refusals(config: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(config, **changes)
    assert all(problem.where == "somewhere/config.json" for problem in caught.value.problems)
    return str(caught.value)


def test_of_a_model_that_sees_the_text_part_is_read() -> None:
    fields = read(SCOUT)
    assert fields["model_type"] == "llama4_text"
    assert fields["attn_temperature_tuning"] is True
    assert (fields["interleave_moe_layer_step"], fields["no_rope_layer_interval"]) == (1, 4)
    assert fields["n_shared_experts"] == 1
    model = Model.model_validate(fields)
    alone = read({**SCOUT["text_config"], "tie_word_embeddings": False})
    assert fields == alone
    assert read(huggingface.to_config(model)) == fields


def test_transformers_reads_the_same_from_the_whole_and_from_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = {**SCOUT["text_config"], "attn_temperature_tuning": True}  # transformers 5 wants it spelt out
    whole = transformers.Llama4Config.from_dict({**SCOUT, "text_config": text})
    whole.save_pretrained(tmp_path)
    fields = huggingface.model_fields(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(huggingface.to_config(Model.model_validate(fields))))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for key in ("moe_layers", "no_rope_layers", "layer_types", "rope_parameters", "head_dim", "use_qk_norm"):
        assert getattr(theirs, key) == getattr(whole.text_config, key), key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_config": None}, "text_config of this llama4 model is missing"),
        ({"text_config": 5}, "text_config of this llama4 model must be a map, but is 5"),
        ({"text_config": {**LLAMA4, "model_type": "llama"}}, "text_config.model_type 'llama' is not supported"),
        ({"text_config": {**LLAMA4, "tie_word_embeddings": True}}, "contradict each other"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "fbgemm_fp8"),
        ({"text_config": {**LLAMA4, "attention_bias": True}}, "attention_bias"),
    ],
)
def test_what_is_wrong_with_a_composite(change: dict[str, Any], said: str) -> None:
    assert said in refusals(SCOUT, **change)


@pytest.mark.parametrize(
    ("lists", "step", "interval"),
    [
        ({}, 1, 4),
        ({"moe_layers": [1, 3, 5, 7], "no_rope_layers": []}, 2, 4),
        ({"interleave_moe_layer_step": 1, "moe_layers": [7, 3, 3, 99]}, 4, 4),
        ({"moe_layers": [], "no_rope_layers": [1] * 8}, 9, 9),
        ({"moe_layers": [4], "no_rope_layers": [0] * 8}, 5, 1),
        ({"interleave_moe_layer_step": 3, "no_rope_layer_interval": 2}, 3, 2),
    ],
)
def test_lists_of_layers_are_read_as_intervals(lists: dict[str, Any], step: int, interval: int) -> None:
    transformers = pytest.importorskip("transformers")
    fields = read(LLAMA4, **lists)
    assert (fields["interleave_moe_layer_step"], fields["no_rope_layer_interval"]) == (step, interval)
    model = Model.model_validate(fields)
    theirs = transformers.Llama4TextConfig(**{**LLAMA4, **lists})
    every = range(8)
    assert [layers.has_experts(model, layer) for layer in every] == [layer in theirs.moe_layers for layer in every]
    assert [layers.rotates(model, layer) for layer in every] == [bool(flag) for flag in theirs.no_rope_layers]
    assert [layers.attention(model, layer) for layer in every] == theirs.layer_types


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"moe_layers": [0, 2, 4, 6]}, "these moe_layers cannot be honoured"),
        ({"moe_layers": [1, 3]}, "these moe_layers cannot be honoured"),
        ({"moe_layers": 5}, "moe_layers must be a list of numbers, but is 5"),
        ({"moe_layers": ["a"]}, "moe_layers must be a list of numbers"),
        ({"no_rope_layers": [0, 1, 1, 1, 0, 1, 1, 1]}, "these no_rope_layers cannot be honoured"),
        ({"no_rope_layers": [1, 1, 0]}, "these no_rope_layers cannot be honoured"),
        ({"layer_types": ["full_attention"] * 8}, "these layer_types cannot be honoured for llama4_text"),
        ({"layer_types": ["chunked_attention"] * 8}, "only full attention in the layers without rotary positions"),
        ({"layer_types": {}}, "layer_types must be a list"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ({"attention_chunk_size": [1]}, "attention_chunk_size must be a single value"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_irregular_layers_are_refused_by_name(lists: dict[str, Any], said: str) -> None:
    assert said in refusals(LLAMA4, **lists)


def test_deepseek_v2_looks_at_groups_only_when_it_is_told_to() -> None:
    grouped = {"n_group": 8, "topk_group": 3}
    assert "n_group" not in read(DEEPSEEK, **grouped)
    assert "n_group" not in read(DEEPSEEK, topk_method="greedy", **grouped)
    fields = read(DEEPSEEK, topk_method="group_limited_greedy", **grouped)
    assert (fields["n_group"], fields["topk_group"]) == (8, 3)
    written = huggingface.to_config(Model.model_validate(fields))
    assert (written["topk_method"], written["n_group"]) == ("group_limited_greedy", 8)
    alone = Model.model_validate({**fields, "n_group": 1, "topk_group": 1})
    assert huggingface.to_config(alone)["topk_method"] == "greedy"


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        (DEEPSEEK, {"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc' cannot be honoured for deepseek_v2"),
        (DEEPSEEK, {"topk_method": "group_limited_greedy"}, "n_group is missing"),
        (DEEPSEEK, {"norm_topk_prob": True}, "norm_topk_prob: True cannot be honoured for deepseek_v2; only false"),
        (DEEPSEEK, {"scoring_func": "sigmoid"}, 'only "softmax" can'),
        (DEEPSEEK, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK, {"mlp_bias": True}, "mlp_bias"),
        (DEEPSEEK, {"num_experts": 8, "n_routed_experts": 4}, "two names of one thing"),
        ({**SIZES, "model_type": "qwen2"}, {"use_sliding_window": True}, "use_sliding_window"),
        ({**SIZES, "model_type": "qwen2"}, {"layer_types": ["sliding_attention"]}, "layer_types"),
        ({**SIZES, "model_type": "qwen3_moe"}, {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({**SIZES, "model_type": "qwen3_moe"}, {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({**SIZES, "model_type": "mixtral"}, {"sliding_window": 4096}, "sliding_window: 4096 cannot be honoured"),
        ({**SIZES, "model_type": "mixtral"}, {"router_jitter_noise": 0.01}, "router_jitter_noise"),
    ],
)
def test_keys_of_which_one_value_can_be_honoured(config: dict[str, Any], change: dict[str, Any], named: str) -> None:
    said = refusals(config, **change)
    for part in named.split("; "):
        assert part in said


@pytest.mark.parametrize(("family", "alias"), [("qwen3_moe", "num_local_experts"), ("mixtral", "num_experts")])
def test_both_names_of_the_number_of_experts_are_read(family: str, alias: str) -> None:
    assert read({**SIZES, "model_type": family}, **{alias: 6})["num_experts"] == 6
    assert read({**SIZES, "model_type": family}, num_experts=6, num_local_experts=6)["num_experts"] == 6


def test_unset_fields_are_written_as_what_they_mean_here() -> None:
    """Not as what the model class would take instead."""
    fields = {key: value for key, value in SIZES.items()}
    latent = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    for family in ("deepseek_v2", "deepseek_v3"):
        written = huggingface.to_config(Model(model_type=family, **fields, **latent, **experts))  # type: ignore[arg-type]
        assert (written["n_shared_experts"], written["first_k_dense_replace"]) == (0, 0)
        assert written["q_lora_rank"] is None
    written = huggingface.to_config(Model(model_type="qwen3_moe", **fields, **experts))  # type: ignore[arg-type]
    assert written["norm_topk_prob"] is True


MLA = "model.kv_lora_rank=16", "model.qk_nope_head_dim=8", "model.qk_rope_head_dim=8", "model.v_head_dim=8"
FOUR = (
    *("model.model_type=llama4_text", "model.intermediate_size_mlp=64", "model.interleave_moe_layer_step=1"),
    *("model.no_rope_layer_interval=4", "model.attention_chunk_size=64", "model.use_qk_norm=true"),
    *("model.attn_temperature_tuning=true", "model.floor_scale=64", "model.attn_scale=0.1"),
)
ROPE = "{rope_type: llama3, factor: 8, original_max_position_embeddings: 64, low_freq_factor: 1, high_freq_factor: %s}"


@pytest.mark.parametrize(
    ("overrides", "message", "excerpt"),
    [
        (FOUR[:-1], "llama4_text needs model.attn_scale", "model.model_type=llama4_text"),
        (
            ["model.attention_chunk_size=64"],
            "model.attention_chunk_size belongs to llama4_text, not to llama",
            "model.attention_chunk_size=64",
        ),
        (["model.use_qk_norm=false"], "model.use_qk_norm belongs to llama4_text", "model.use_qk_norm=false"),
        (["model.model_type=deepseek_v2", *MLA[1:]], "deepseek_v2 needs model.kv_lora_rank", None),
        (
            ["model.model_type=deepseek_v2", *MLA, "model.head_dim=16"],
            "not to deepseek_v2",
            "model.head_dim=16",
        ),
        (
            ["model.model_type=deepseek_v2", *MLA[:2], "model.qk_rope_head_dim=7", MLA[3]],
            "a part of width 7 cannot be rotated",
            "model.qk_rope_head_dim=7",
        ),
        (
            ["model.model_type=qwen3_moe", "model.num_experts=4", "model.num_experts_per_tok=2"],
            "qwen3_moe experts need model.moe_intermediate_size",
            "model.num_experts=4",
        ),
        (["model.model_type=mixtral", "model.sliding_window=64"], "belongs to gpt_oss, not to mixtral", None),
        ([*FOUR, f"model.rope_scaling={ROPE % 0.5}"], "must be below high_freq_factor", None),
    ],
)
def test_contradictions_within_a_family(
    problem: OneProblem, overrides: list[str], message: str, excerpt: str | None
) -> None:
    found = problem("", *overrides)
    assert message in found.message
    assert found.excerpt == (excerpt or found.excerpt)
    assert found.remedy or "below" in message


def test_llama4_may_scale_without_a_blend(resolve: Resolve) -> None:
    """As the published instruct models do: both bounds are equal."""
    assert resolve("", *FOUR, f"model.rope_scaling={ROPE % 1}").experiment.model.rope_scaling is not None
