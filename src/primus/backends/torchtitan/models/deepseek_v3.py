"""DeepSeek-V3: multi-head latent attention, routed and shared experts, routing limited to groups."""

from __future__ import annotations

from typing import Any

from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.latent import decoder
from primus.backends.torchtitan.models.mixtures import mixture
from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    return decoder(parts, lambda layer: _mixture(parts, layer), DeepSeekV3StateDictAdapter)


def _mixture(parts: Parts, layer: int) -> Any:
    model = parts.model
    width = model.moe_intermediate_size or 0
    config = mixture(
        parts,
        layer,
        width,
        score=model.scoring_func or "sigmoid",
        normalised=model.norm_topk_prob is not False,
        scale=model.routed_scaling_factor or 1.0,
        shared=width * (model.n_shared_experts or 0),
    )
    if (model.n_group or 1) > 1:
        config.router.num_expert_groups, config.router.num_limited_groups = model.n_group, model.topk_group
    return config
