"""DeepSeek-V3: multi-head latent attention, routed and shared experts, routing limited to groups."""

from __future__ import annotations

from typing import Any

from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common.config_utils import make_moe_config, make_routed_experts_config, make_router_config
from torchtitan.models.deepseek_v3 import DeepSeekV3Model, parallelize_deepseekv3
from torchtitan.models.deepseek_v3.model import Attention, DeepSeekV3TransformerBlock
from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.experts import FullPrecisionExperts
from primus.backends.torchtitan.models.parts import BALANCE_RATE, Parts

LATENT_EPS = 1e-6
"""Of the norms of compressed queries, keys and values, whatever `rms_norm_eps` says: so in DeepSeek's and transformers'
code."""


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    dense = model.first_k_dense_replace or 0
    layers = [
        DeepSeekV3TransformerBlock.Config(
            attention_norm=parts.norm(model.hidden_size),
            ffn_norm=parts.norm(model.hidden_size),
            attention=_attention(parts, layer),
            feed_forward=parts.feed_forward(layer, model.intermediate_size) if layer < dense else None,
            moe=_mixture(parts, layer) if layer >= dense else None,
        )
        for layer in range(model.num_hidden_layers)
    ]
    balanced = parts.moe.balance == "bias" and dense < model.num_hidden_layers
    return ModelSpec(
        name="deepseek_v3",
        flavor="primus",
        model=DeepSeekV3Model.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_deepseekv3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=register_moe_load_balancing_hook if balanced else None,
        state_dict_adapter=DeepSeekV3StateDictAdapter,
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


def _mixture(parts: Parts, layer: int) -> Any:
    model = parts.model
    count, chosen, width = model.num_experts or 0, model.num_experts_per_tok or 0, model.moe_intermediate_size or 0
    groups = model.n_group if (model.n_group or 1) > 1 else None
    routed = make_routed_experts_config(
        dim=model.hidden_size,
        hidden_dim=width,
        num_experts=count,
        top_k=chosen,
        param_init=parts.experts_init(layer, {"w1_EFD": "in", "w3_EFD": "in", "w2_EDF": "out"}),
        comm_backend="standard",
    )
    if parts.full_precision:
        experts = routed.inner_experts
        routed.inner_experts = FullPrecisionExperts.Config(
            dim=experts.dim,
            hidden_dim=experts.hidden_dim,
            num_experts=experts.num_experts,
            param_init=experts.param_init,
        )
    return make_moe_config(
        num_experts=count,
        router=make_router_config(
            dim=model.hidden_size,
            num_experts=count,
            gate_param_init=parts.init(layer),
            top_k=chosen,
            score_func=model.scoring_func or "sigmoid",
            route_norm=model.norm_topk_prob is not False,
            route_scale=model.routed_scaling_factor or 1.0,
            num_expert_groups=groups,
            num_limited_groups=model.topk_group if groups else None,
        ),
        routed_experts=routed,
        shared_experts=parts.feed_forward(layer, width * (model.n_shared_experts or 0)),
        load_balance_coeff=BALANCE_RATE if parts.moe.balance == "bias" else None,
    )
