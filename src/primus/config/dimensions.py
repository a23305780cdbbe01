"""Dimensions of a model that follow from its fields."""

from __future__ import annotations

from primus.config.experiment import Model
from primus.config.families import FAMILIES


def head_dim(model: Model) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def key_value_heads(model: Model) -> int:
    return model.num_key_value_heads or model.num_attention_heads


def expert_width(model: Model) -> int:
    """Feed-forward width of one expert. GPT-OSS, Mixtral and Llama 4 call it `intermediate_size`."""
    return model.moe_intermediate_size or model.intermediate_size


def dense_width(model: Model) -> int:
    """Feed-forward width of a layer without experts."""
    return model.intermediate_size_mlp or model.intermediate_size


def shared_experts(model: Model) -> int:
    """Experts of a layer that every token passes through."""
    implied: int = FAMILIES[model.model_type].implied.get("n_shared_experts", 0)
    return implied if model.n_shared_experts is None else model.n_shared_experts
