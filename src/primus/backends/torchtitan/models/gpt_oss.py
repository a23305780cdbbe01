"""GPT-OSS: attention with sinks and windows in every other layer, biases, experts with a clamped gate."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common.attention import FusedQKVLinear
from torchtitan.models.common.config_utils import make_token_dispatcher_config
from torchtitan.models.common.moe import TokenChoiceTopKRouter
from torchtitan.models.gpt_oss import GptOssModel, parallelize_gptoss
from torchtitan.models.gpt_oss.model import Attention, GptOssTransformerBlock
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, GptOssMoE
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.experts import FullPrecisionGptOssExperts, SettledExperts, SummedBiasLinear
from primus.backends.torchtitan.models.parts import BALANCE_RATE, Parts


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    layers = [
        GptOssTransformerBlock.Config(
            attention_norm=parts.norm(model.hidden_size),
            ffn_norm=parts.norm(model.hidden_size),
            attention=_attention(parts, layer),
            moe=_mixture(parts, layer),
        )
        for layer in range(model.num_hidden_layers)
    ]
    return ModelSpec(
        name="gpt_oss",
        flavor="primus",
        model=GptOssModel.Config(**parts.root(), layers=layers),
        parallelize_fn=parallelize_gptoss,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=parts.balancing_hook(),
        # TorchTitan's adapter misspells the experts' names and leaves them out without a word.
        state_dict_adapter=None,
    )


def _attention(parts: Parts, layer: int) -> Any:
    model = parts.model
    hidden, heads, kv_heads, head_dim = model.hidden_size, model.num_attention_heads, parts.kv_heads, parts.head_dim
    init = parts.init(layer)
    return Attention.Config(
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        dim=hidden,
        qkv_linear=FusedQKVLinear.Config(
            head_dim=head_dim,
            n_heads=heads,
            n_kv_heads=kv_heads,
            wqkv=parts.linear(hidden, (heads + 2 * kv_heads) * head_dim, layer=layer, bias=True),
        ),
        wo=SummedBiasLinear.Config(in_features=heads * head_dim, out_features=hidden, bias=True, param_init=init),
        inner_attention=parts.inner_attention(),
        sliding_window_size=model.sliding_window if layer % 2 == 0 else None,
        param_init={"sinks": nn.init.zeros_} if parts.native_start else init,
        rope=parts.rope("halves", head_dim, gpt_oss=True),
    )


def _mixture(parts: Parts, layer: int) -> Any:
    model = parts.model
    count, chosen = model.num_experts or 0, model.num_experts_per_tok or 0
    experts = FullPrecisionGptOssExperts if parts.full_precision else GptOssGroupedExperts
    kinds = {"mlp1_weight_EGD": "in", "mlp1_bias_EG": "bias", "mlp2_weight_EDF": "out", "mlp2_bias_ED": "bias"}
    return GptOssMoE.Config(
        num_experts=count,
        load_balance_coeff=BALANCE_RATE if parts.moe.balance == "bias" else None,
        routed_experts=SettledExperts.Config(
            inner_experts=experts.Config(
                dim=model.hidden_size,
                hidden_dim=model.intermediate_size,
                num_experts=count,
                swiglu_limit=model.swiglu_limit or 7.0,
                param_init=parts.experts_init(layer, kinds),
            ),
            token_dispatcher=make_token_dispatcher_config(num_experts=count, top_k=chosen, comm_backend="standard"),
        ),
        router=TokenChoiceTopKRouter.Config(
            num_experts=count,
            gate=parts.linear(model.hidden_size, count, layer=layer, bias=True),
            top_k=chosen,
            score_func="softmax",
            route_norm=True,
        ),
    )
