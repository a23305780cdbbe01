"""Qwen3, dense: grouped-query attention with normalised queries and keys, heads of their own width."""

from __future__ import annotations

from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    layers = [
        Qwen3TransformerBlock.Config(
            attention_norm=parts.norm(model.hidden_size),
            ffn_norm=parts.norm(model.hidden_size),
            attention=parts.gqa(layer, parts.rope("halves", parts.head_dim), qk_norm=True),
            feed_forward=parts.feed_forward(layer, model.intermediate_size),
        )
        for layer in range(model.num_hidden_layers)
    ]
    return ModelSpec(
        name="qwen3",
        flavor="primus",
        model=Qwen3Model.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Qwen3StateDictAdapter,
    )
