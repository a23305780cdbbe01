"""DeepSeek-V2: multi-head latent attention, routed and shared experts, groups judged by their best expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.config.override import derive
from torchtitan.models.common.moe import TokenChoiceTopKRouter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.latent import decoder
from primus.backends.torchtitan.models.mixtures import mixture
from primus.backends.torchtitan.models.parts import Parts


class BestExpertRouter(TokenChoiceTopKRouter):
    """Limits the choice to the groups whose best expert scores highest. TorchTitan's, made for DeepSeek-V3, looks at
    the best two of each."""

    @dataclass(kw_only=True, slots=True)
    class Config(TokenChoiceTopKRouter.Config):
        pass

    def _get_node_limited_routing_scores(self, scores_for_choice_BLE: torch.Tensor) -> torch.Tensor:
        """[B, L, E] -> the same with the experts of the other groups at -inf."""
        assert self.num_expert_groups is not None
        assert self.num_limited_groups is not None
        grouped = torch.unflatten(scores_for_choice_BLE, -1, (self.num_expert_groups, -1))
        best = grouped.amax(dim=-1)
        chosen = best.topk(self.num_limited_groups, dim=-1, sorted=False).indices
        others = torch.ones_like(best, dtype=torch.bool).scatter_(-1, chosen, False)
        return grouped.masked_fill(others.unsqueeze(-1), float("-inf")).flatten(-2)


def spec(parts: Parts) -> ModelSpec:
    return decoder(parts, lambda layer: _mixture(parts, layer))


def _mixture(parts: Parts, layer: int) -> Any:
    model = parts.model
    width = model.moe_intermediate_size or 0
    config = mixture(
        parts,
        layer,
        width,
        score="softmax",
        normalised=False,
        scale=model.routed_scaling_factor or 1.0,
        shared=width * (model.n_shared_experts or 0),
    )
    if (model.n_group or 1) > 1:
        config.router = derive(
            config.router,
            BestExpertRouter.Config,
            num_expert_groups=model.n_group,
            num_limited_groups=model.topk_group,
        )
    return config
