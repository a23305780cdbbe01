"""Llama: grouped-query attention, rotary embedding plain or scaled, gated feed-forward."""

from __future__ import annotations

from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    layers = [
        Llama3TransformerBlock.Config(
            attention_norm=parts.norm(model.hidden_size),
            ffn_norm=parts.norm(model.hidden_size),
            attention=parts.gqa(layer, parts.rope("neighbours", parts.head_dim)),
            feed_forward=parts.feed_forward(layer, model.intermediate_size),
        )
        for layer in range(model.num_hidden_layers)
    ]
    return ModelSpec(
        name="llama3",
        flavor="primus",
        model=Llama3Model.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_llama,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Llama3StateDictAdapter,
    )
