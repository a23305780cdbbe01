"""Qwen3, dense: grouped-query attention with normalised queries and keys, heads of their own width."""

from __future__ import annotations

from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.grouped import decoder
from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    return decoder(parts, qk_norm=True, adapter=Qwen3StateDictAdapter)
