"""A layer of experts, each a gated feed-forward of three matrices, from TorchTitan's configuration classes."""

from __future__ import annotations

from typing import Any, Literal

from torchtitan.config.override import derive
from torchtitan.models.common.config_utils import make_moe_config, make_routed_experts_config, make_router_config

from primus.backends.torchtitan.models.experts import FullPrecisionExperts, SettledExperts
from primus.backends.torchtitan.models.parts import BALANCE_RATE, Parts


def mixture(
    parts: Parts,
    layer: int,
    width: int,
    *,
    score: Literal["softmax", "sigmoid"],
    normalised: bool,
    scale: float = 1.0,
    shared: int = 0,
) -> Any:
    """width: of one expert. normalised: the chosen scores sum to one. scale: on the routed experts' output. shared:
    width of the feed-forward that every token passes through beside them, 0 for none."""
    model = parts.model
    count, chosen = model.num_experts or 0, model.num_experts_per_tok or 0
    routed = make_routed_experts_config(
        dim=model.hidden_size,
        hidden_dim=width,
        num_experts=count,
        top_k=chosen,
        param_init=parts.experts_init(layer, {"w1_EFD": "in", "w3_EFD": "in", "w2_EDF": "out"}),
        comm_backend="standard",
    )
    routed = derive(routed, SettledExperts.Config)
    if parts.full_precision:
        routed.inner_experts = derive(routed.inner_experts, FullPrecisionExperts.Config)
    return make_moe_config(
        num_experts=count,
        router=make_router_config(
            dim=model.hidden_size,
            num_experts=count,
            gate_param_init=parts.init(layer),
            top_k=chosen,
            score_func=score,
            route_norm=normalised,
            route_scale=scale,
        ),
        routed_experts=routed,
        shared_experts=parts.feed_forward(layer, shared) if shared else None,
        load_balance_coeff=BALANCE_RATE if parts.moe.balance == "bias" else None,
    )
