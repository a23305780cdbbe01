"""Model families: what their config.json says, and which portable fields they have.

What a key means is what the model class of ``transformers`` makes of it: keys that class does not read are no concern
of ours either. Of those it reads, each is carried, held to the one value that can be honoured, or without effect on
training (``HARMLESS``). Per-layer lists and the rotary embedding are read apart, by ``primus.config.huggingface``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
REQUIRED = (*SIZES, "max_position_embeddings")
COMMON = (*REQUIRED, "rms_norm_eps", "tie_word_embeddings")
"""Keys of every family, which are portable fields of the same name."""

AGAIN = "fetch or export the model again"
"""Remedy for a config.json that is broken."""

EXPERT_FIELDS = (
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace"),
    *("n_group", "topk_group", "routed_scaling_factor", "scoring_func", "norm_topk_prob"),
)
"""Portable fields that describe a mixture of experts."""


@dataclass(frozen=True)
class Family:
    """One family of models, by its Hugging Face ``model_type``.

    architecture: the model class, as config.json names it.
    carried: key of config.json -> portable field, beside ``COMMON``.
    defaults: of the model class, for keys that a config.json may leave out. One that is not here has none.
    fixed: settings of which one value can be honoured; absent means that value.
    needed: portable fields without which there is no such model.
    implied: portable fields that the family fixes without a key of its own.
    routing: how `implied` routes, in words.
    unset: what a portable field left unset is written as, where the model class would take it for something else.
    aliases: other names that the model class takes for a key of `carried`.
    rope: rotary scaling that the model class assumes for a config.json without any.
    """

    architecture: str
    carried: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    needed: tuple[str, ...] = ()
    implied: Mapping[str, Any] = field(default_factory=dict)
    routing: str = ""
    unset: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    rope: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> frozenset[str]:
        """Portable fields that mean something to this family but not to all."""
        return frozenset({*self.carried.values(), *self.implied})

    @property
    def mixture(self) -> bool:
        """Whether its models are mixtures of experts."""
        return "num_experts" in self.fields


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_GROUPED = _same("num_key_value_heads", "head_dim")
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_DEEPSEEK = {
    **_same("num_key_value_heads", "q_lora_rank", *_LATENT),
    "n_routed_experts": "num_experts",
    **_same("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace"),
    **_same("n_group", "topk_group", "routed_scaling_factor"),
}
_SOFTMAX_OF_CHOSEN = {"scoring_func": "softmax", "norm_topk_prob": True}
_PLAIN = {"hidden_act": "silu", "attention_dropout": 0.0}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        carried=_GROUPED,
        defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        fixed={**_PLAIN, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    ),
    "qwen2": Family(  # queries, keys and values always have a bias, the output never has
        "Qwen2ForCausalLM",
        carried=_GROUPED,
        defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "num_key_value_heads": 32},
        fixed={**_PLAIN, "use_sliding_window": False},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        carried=_GROUPED,
        defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "num_key_value_heads": 32, "head_dim": 128},
        fixed={**_PLAIN, "attention_bias": False, "use_sliding_window": False},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        carried={
            **_GROUPED,
            **_same("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        },
        defaults={
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        fixed={
            **_PLAIN,
            "attention_bias": False,
            "use_sliding_window": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        implied={"scoring_func": "softmax"},
        routing="a softmax over all experts",
        unset={"norm_topk_prob": True},
        aliases={"num_local_experts": "num_experts"},  # written by transformers 5
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        carried={**_GROUPED, "num_local_experts": "num_experts", **_same("num_experts_per_tok")},
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        fixed={**_PLAIN, "router_jitter_noise": 0.0, "sliding_window": None},
        implied=_SOFTMAX_OF_CHOSEN,
        routing="a softmax over the chosen experts",
        aliases={"num_experts": "num_local_experts"},
    ),
    "llama4_text": Family(
        "Llama4ForCausalLM",
        carried={
            **_GROUPED,
            **_same("intermediate_size_mlp", "interleave_moe_layer_step", "no_rope_layer_interval"),
            **_same("attention_chunk_size", "use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale"),
            "num_local_experts": "num_experts",
            **_same("num_experts_per_tok"),
        },
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
        },
        fixed={**_PLAIN, "attention_bias": False, "router_jitter_noise": 0.0},
        needed=(
            *("intermediate_size_mlp", "interleave_moe_layer_step", "no_rope_layer_interval", "attention_chunk_size"),
            *("use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale"),
        ),
        implied={"scoring_func": "sigmoid", "norm_topk_prob": False, "n_shared_experts": 1},
        routing="the sigmoid of each chosen expert's own score, which scales the expert's input",
    ),
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        carried=_DEEPSEEK,
        defaults={
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "moe_intermediate_size": 1407,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 1.0,
        },
        fixed={
            **_PLAIN,
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": False,
        },
        needed=_LATENT,
        implied={"scoring_func": "softmax", "norm_topk_prob": False},
        routing="a softmax over all experts, not normalised over the chosen",
        unset={"first_k_dense_replace": 0, "n_shared_experts": 0, "routed_scaling_factor": 1.0},
        aliases={"num_experts": "n_routed_experts"},
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        carried={**_DEEPSEEK, **_same("norm_topk_prob", "scoring_func")},
        defaults={
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
        },
        fixed={
            **_PLAIN,
            "attention_bias": False,
            "rope_interleave": True,
            "pretraining_tp": 1,
            "moe_layer_freq": 1,
            "topk_method": "noaux_tc",
        },
        needed=_LATENT,
        unset={
            "first_k_dense_replace": 0,
            "n_shared_experts": 0,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
        },
        aliases={"num_local_experts": "n_routed_experts"},
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        carried={
            **_GROUPED,
            "num_local_experts": "num_experts",
            **_same("num_experts_per_tok", "sliding_window", "swiglu_limit"),
        },
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
        },
        fixed={**_PLAIN, "attention_bias": True, "swiglu_alpha": 1.702},
        implied=_SOFTMAX_OF_CHOSEN,
        routing="a softmax over the chosen experts",
        aliases={"num_experts": "num_local_experts"},
        rope={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
}
"""Every ``model_type`` that an experiment can name."""

COMPOSITES = {"llama4": "llama4_text"}
"""``model_type`` of a model that also sees -> that of its text part, which is what is trained here."""

HARMLESS = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
        *("chunk_size_feed_forward", "initializer_range", "is_encoder_decoder", "router_aux_loss_coef"),
        *("max_window_layers", "num_nextn_predict_layers", "qk_head_dim"),
    }
)
"""Keys the model classes read (or store) that do not change what is trained here."""


def latent_attention(model_type: str) -> bool:
    """Whether queries, keys and values pass through a low-rank latent (multi-head latent attention)."""
    return "kv_lora_rank" in FAMILIES[model_type].fields


def having(name: str) -> list[str]:
    """The families that have this portable field; none when all have it."""
    return [model_type for model_type, family in FAMILIES.items() if name in family.fields]
