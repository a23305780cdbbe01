"""The text part of Llama 4: chunks of attention, layers without rotation, experts that take scored inputs.

Positions are those within the document where attention is, so that chunks and growth begin with each document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from torchtitan.config.override import derive
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common import CosSinRoPE
from torchtitan.models.common.attention import (
    AttentionMasksType,
    get_causal_mask_mod,
    get_efficient_causal_mask_mod_for_packed_document,
)
from torchtitan.models.common.moe_sharding import set_moe_sharding_config
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec

from primus.backends.torchtitan.models.experts import FullPrecisionJoinedExperts, JoinedExperts, ScoredInputs
from primus.backends.torchtitan.models.mixtures import mixture
from primus.backends.torchtitan.models.parts import Parts, YarnComplexRoPE
from primus.config.dimensions import dense_width, shared_experts
from primus.config.layers import attention, has_experts, rotates


class NormedRotation(YarnComplexRoPE):
    """Rotates queries and keys, and then divides each head by its root mean square."""

    @dataclass(kw_only=True, slots=True)
    class Config(YarnComplexRoPE.Config):
        eps: float = 1e-5

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = super().forward(query, key, positions)
        return self._normed(query), self._normed(key)

    def _normed(self, heads: torch.Tensor) -> torch.Tensor:
        wide = heads.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.config.eps)).type_as(heads)


class GrowingQueries(CosSinRoPE):
    """In place of a rotation: queries grow with their position p, counted from 1, by
    ``1 + strength * ln(1 + floor(p / floor_scale))`` (arXiv:2501.19399)."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        strength: float = 0.0
        floor_scale: int = 1

    def _precompute_cache(self) -> torch.Tensor:
        """[max_seq_len, 1]"""
        steps = torch.floor(torch.arange(1, self.config.max_seq_len + 1).float() / self.config.floor_scale)
        return (torch.log1p(steps) * self.config.strength + 1.0).unsqueeze(-1)

    @staticmethod
    def apply_rotary_emb(
        query: torch.Tensor, key: torch.Tensor, rope_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (query.float() * rope_cache).type_as(query), key


class Llama4Block(Qwen3TransformerBlock):
    """Picks its layer's mask out of the model's."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3TransformerBlock.Config):
        mask: str = "full_attention"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mask = config.mask

    def forward(
        self, x: torch.Tensor, attention_masks: AttentionMasksType | None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, L, D] -> [B, L, D]"""
        assert isinstance(attention_masks, dict)
        out: torch.Tensor = super().forward(x, attention_masks[self.mask], positions)
        return out


class Llama4Model(Qwen3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3Model.Config):
        chunk_size: int = 8192

        def update_from_config(self, *, config: Any, **options: Any) -> None:
            Qwen3Model.Config.update_from_config(self, config=config, **options)
            for layer in self.layers:
                if layer.moe is not None:
                    set_moe_sharding_config(
                        layer.moe,
                        enable_ep=config.parallelism.expert_parallel_degree > 1,
                        enable_sp=config.parallelism.enable_sequence_parallel,
                        expert_param_layout=JoinedExperts.SHARDING,
                    )

    def get_attention_masks(self, positions: torch.Tensor) -> dict[str, BlockMask]:
        """positions [B, L] -> a mask for each kind of attention."""
        size = self.config.chunk_size
        chunks = positions // size

        def same_chunk(b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
            return chunks[b, q_idx] == chunks[b, kv_idx]

        causal = [get_causal_mask_mod(), get_efficient_causal_mask_mod_for_packed_document(positions)]
        layer = self.config.first_attention
        full = self._create_flex_attention_mask(positions, layer, causal)
        fits = size >= positions.shape[1]
        chunked = full if fits else self._create_flex_attention_mask(positions, layer, [*causal, same_chunk])
        return {"full_attention": full, "chunked_attention": chunked}


def spec(parts: Parts) -> ModelSpec:
    model = parts.model
    layers = []
    for layer in range(model.num_hidden_layers):
        sparse = has_experts(model, layer)
        layers.append(
            Llama4Block.Config(
                mask=attention(model, layer),
                attention_norm=parts.norm(model.hidden_size),
                ffn_norm=parts.norm(model.hidden_size),
                attention=parts.gqa(layer, _positions(parts, layer)),
                feed_forward=None if sparse else parts.feed_forward(layer, dense_width(model)),
                moe=_mixture(parts, layer) if sparse else None,
            )
        )
    return ModelSpec(
        name="llama4_text",
        flavor="primus",
        model=Llama4Model.Config(
            **parts.root(), layers=layers, chunk_size=model.attention_chunk_size or parts.seq_length
        ),
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=parts.balancing_hook(),
        state_dict_adapter=None,
    )


def _positions(parts: Parts, layer: int) -> Any:
    """What a layer does to its queries and keys for the sake of their positions."""
    model = parts.model
    if rotates(model, layer):
        rotation = parts.rope("neighbours", parts.head_dim)
        return derive(rotation, NormedRotation.Config, eps=model.rms_norm_eps) if model.use_qk_norm else rotation
    return GrowingQueries.Config(
        dim=parts.head_dim,
        max_seq_len=parts.seq_length,
        strength=(model.attn_scale or 0.0) if model.attn_temperature_tuning else 0.0,
        floor_scale=model.floor_scale or 1,
    )


def _mixture(parts: Parts, layer: int) -> Any:
    model = parts.model
    width = model.intermediate_size
    config = mixture(parts, layer, width, score="sigmoid", normalised=False, shared=width * shared_experts(model))
    routed = config.routed_experts
    routed.inner_experts = derive(
        routed.inner_experts,
        FullPrecisionJoinedExperts.Config if parts.full_precision else JoinedExperts.Config,
        param_init=parts.experts_init(layer, {"w13_EGD": "in", "w2_EDF": "out"}),
    )
    routed.token_dispatcher = derive(routed.token_dispatcher, ScoredInputs.Config)
    return config
