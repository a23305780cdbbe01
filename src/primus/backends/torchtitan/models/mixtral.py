"""Mixtral: experts in every layer, weighed by the softmax of their scores over the chosen ones."""

from __future__ import annotations

from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.grouped import decoder
from primus.backends.torchtitan.models.mixtures import mixture
from primus.backends.torchtitan.models.parts import Parts


def spec(parts: Parts) -> ModelSpec:
    # A softmax over all experts, normalised over the chosen, is the softmax over the chosen.
    width = parts.model.intermediate_size
    return decoder(parts, mixture=lambda layer: mixture(parts, layer, width, score="softmax", normalised=True))
