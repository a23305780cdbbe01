"""Decoders of multi-head latent attention: DeepSeek-V2 and DeepSeek-V3, which differ in how they choose experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.deepseek_v3 import DeepSeekV3Model, parallelize_deepseekv3
from torchtitan.models.deepseek_v3.model import Attention, DeepSeekV3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.parts import Parts
from primus.config.layers import has_experts

LATENT_EPS = 1e-6
"""Of the norms of compressed queries, keys and values, whatever `rms_norm_eps` says: so in DeepSeek's and transformers'
code."""


def decoder(parts: Parts, mixture: Callable[[int], Any], adapter: Any = None) -> ModelSpec:
    """mixture: makes the experts of a layer that has some. adapter: TorchTitan's conversion of checkpoints, where it
    knows every tensor of the family (ours needs none)."""
    model = parts.model
    layers = []
    for layer in range(model.num_hidden_layers):
        sparse = has_experts(model, layer)
        layers.append(
            DeepSeekV3TransformerBlock.Config(
                attention_norm=parts.norm(model.hidden_size),
                ffn_norm=parts.norm(model.hidden_size),
                attention=_attention(parts, layer),
                feed_forward=None if sparse else parts.feed_forward(layer, model.intermediate_size),
                moe=mixture(layer) if sparse else None,
            )
        )
    return ModelSpec(
        name=model.model_type,
        flavor="primus",
        model=DeepSeekV3Model.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_deepseekv3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=parts.balancing_hook(),
        state_dict_adapter=adapter,
    )


def _attention(parts: Parts, layer: int) -> Any:
    model = parts.model
    hidden, heads, query_rank, rank = (
        model.hidden_size,
        model.num_attention_heads,
        model.q_lora_rank or 0,
        model.kv_lora_rank or 0,
    )
    nope, rope, value = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0, model.v_head_dim or 0
    query_width = heads * (nope + rope)
    scaling = model.rope_scaling
    return Attention.Config(
        dim=hidden,
        n_heads=heads,
        q_lora_rank=query_rank,
        kv_lora_rank=rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
        # The softmax scale grows by the square of yarn's magnitude for `mscale_all_dim`; at 0 it stays.
        mscale=(scaling.mscale_all_dim if scaling else None) or 0.0,
        wq=None if query_rank else parts.linear(hidden, query_width),
        wq_a=parts.linear(hidden, query_rank) if query_rank else None,
        wq_b=parts.linear(query_rank, query_width) if query_rank else None,
        q_norm=parts.norm(query_rank or 1, LATENT_EPS),
        wkv_a=parts.linear(hidden, rank + rope),
        kv_norm=parts.norm(rank, LATENT_EPS),
        wkv_b=parts.linear(rank, heads * (nope + value)),
        wo=parts.linear(heads * value, hidden, layer=layer),
        inner_attention=parts.inner_attention(),
        rope=parts.rope("neighbours", rope),
    )
