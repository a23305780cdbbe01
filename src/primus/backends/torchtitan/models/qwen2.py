"""Qwen2: grouped-query attention with biases on queries, keys and values, and on nothing else."""

from __future__ import annotations

from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.grouped import decoder
from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    return decoder(parts, qkv_bias=True)
