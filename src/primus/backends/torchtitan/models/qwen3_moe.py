"""Qwen3 with experts in every layer: chosen by a softmax over all of them, none shared."""

from __future__ import annotations

from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.grouped import decoder
from primus.backends.torchtitan.models.mixtures import mixture
from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    width, normalised = model.moe_intermediate_size or 0, model.norm_topk_prob is not False
    return decoder(
        parts,
        qk_norm=True,
        mixture=lambda layer: mixture(parts, layer, width, score="softmax", normalised=normalised),
        adapter=Qwen3StateDictAdapter,
    )
