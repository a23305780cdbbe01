"""Decoders of grouped-query attention whose rotary embedding turns halves: Qwen2, Qwen3, Qwen3 MoE and Mixtral.

TorchTitan's Qwen3 builds all of them: norms on queries and keys, biases and experts are matters of configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.parts import Parts


def decoder(
    parts: Parts,
    *,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    mixture: Callable[[int], Any] | None = None,
    adapter: Any = None,
) -> ModelSpec:
    """mixture: makes the experts of a layer; all layers are dense without it. adapter: TorchTitan's conversion of
    checkpoints, where it knows every tensor of the family (ours needs none)."""
    model = parts.model
    layers = [
        Qwen3TransformerBlock.Config(
            attention_norm=parts.norm(model.hidden_size),
            ffn_norm=parts.norm(model.hidden_size),
            attention=parts.gqa(layer, parts.rope("halves", parts.head_dim), qk_norm=qk_norm, qkv_bias=qkv_bias),
            feed_forward=None if mixture else parts.feed_forward(layer, model.intermediate_size),
            moe=mixture(layer) if mixture else None,
        )
        for layer in range(model.num_hidden_layers)
    ]
    return ModelSpec(
        name=model.model_type,
        flavor="primus",
        model=Qwen3Model.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=parts.balancing_hook(),
        state_dict_adapter=adapter,
    )
