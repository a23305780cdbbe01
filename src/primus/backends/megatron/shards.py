"""Which part of which whole tensor each parameter and persistent buffer of this rank is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state as mpu
from megatron.core.utils import get_model_config, unwrap_model

from primus.backends.pytorch.shards import Shard

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_AHEAD = re.compile(r"(mtp\.layers\.\d+\.)(?:transformer_layer|mtp_model_layer)\.")
"""The layer inside one that predicts further ahead; its name depends on Megatron's version."""
_EXPERT = re.compile(r"experts\.local_experts\.(\d+)\.")
_GROUPED = re.compile(r"experts\.(linear_fc[12])\.weight(\d+)")
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attention.q_layernorm.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attention.kv_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""TransformerEngine's name of a norm that it computes together with a projection -> its own name."""
BUFFERS = ("expert_bias",)
"""Buffers that training changes. The others are caches and counters."""


def shards(chunks: list[Any]) -> Iterator[tuple[Shard, torch.Tensor]]:
    """Every parameter of the model `chunks` and those of its buffers that are state, as a shard and as itself."""
    for chunk in chunks:
        module = unwrap_model(chunk)
        config = get_model_config(module)
        tied = module.share_embeddings_and_output_weights
        buffers = [(name, buffer) for name, buffer in module.named_buffers() if name.endswith(BUFFERS)]
        for name, tensor in (*module.named_parameters(), *buffers):
            plain = _whole_name(name, module)
            if tied and plain == "output_layer.weight":  # the last stage's copy
                plain = "embedding.word_embeddings.weight"
            yield _shard(plain, tensor, gated=config.gated_linear_unit, experts=config.num_moe_experts or 0), tensor


def _whole_name(name: str, module: Any) -> str:
    """`name` with the numbers that layer and expert have in the whole model."""

    def layer(match: re.Match[str]) -> str:
        return f"decoder.layers.{module.decoder.layers[int(match[1])].layer_number - 1}."

    for fused, plain in _FUSED_NORMS.items():
        name = name.replace(fused, plain)
    name = _GROUPED.sub(r"experts.local_experts.\2.\1.weight", name)  # TransformerEngine's experts
    return _AHEAD.sub(r"\1layer.", _LAYER.sub(layer, name))


def _shard(name: str, tensor: torch.Tensor, *, gated: bool, experts: int) -> Shard:
    shape, indices = list(tensor.shape), [np.arange(size, dtype=np.int64) for size in tensor.shape]
    if getattr(tensor, "tensor_model_parallel", False):
        expert = not getattr(tensor, "allreduce", True)
        ranks = mpu.get_expert_tensor_parallel_world_size() if expert else mpu.get_tensor_model_parallel_world_size()
        rank = mpu.get_expert_tensor_parallel_rank() if expert else mpu.get_tensor_model_parallel_rank()
        dim = getattr(tensor, "partition_dim")  # noqa: B009 - Megatron sets it
        size = shape[dim]
        shape[dim] = size * ranks
        if gated and ".linear_fc1." in f".{name}":
            half = indices[dim][: size // 2] + rank * (size // 2)
            indices[dim] = np.concatenate([half, half + ranks * (size // 2)])
        else:
            indices[dim] += rank * size
    local = tensor.detach()
    if match := _EXPERT.search(name):
        # the experts of a layer are one whole tensor, as they are in every grouped implementation
        here = experts // mpu.get_expert_model_parallel_world_size()
        number = mpu.get_expert_model_parallel_rank() * here + int(match[1])
        name = _EXPERT.sub("experts.", name)
        return Shard(name, local[None], (experts, *shape), [np.array([number]), *indices])
    return Shard(name, local, tuple(shape), indices)
