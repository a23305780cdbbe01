"""Attention on torch's scaled dot product: Megatron's own cannot split sequences, and holds every score at once."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import nn

from primus.config import layers
from primus.config.experiment import Model

# Shapes: S tokens on this rank, T tokens of the whole sequence, B sequences, N query heads, G key/value heads of this
# rank, D width of queries and keys, V width of values.


class CoreAttention(nn.Module):
    """Causal attention of one layer, as a ``core_attention`` of Megatron's specs.

    With context parallelism a rank holds two chunks of each sequence, one from each end, so that all have the same
    work; keys and values are gathered. What Llama 4 does to rotated queries and keys is done here too.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        *,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        pg_collection: Any,
        **_: Any,
    ) -> None:
        """layer_number: counted from 1."""
        super().__init__()
        width = k_channels or config.kv_channels
        self.scale = (softmax_scale or 1.0 / math.sqrt(width)) * config.softmax_factor
        self.ranks, self.rank = pg_collection.cp.size(), pg_collection.cp.rank()
        self._group = pg_collection.cp
        self._model: Model = config.model
        layer = layer_number - 1
        self._rotates = layers.rotates(self._model, layer)
        chunked = layers.attention(self._model, layer) == "chunked_attention"
        self._chunk = self._model.attention_chunk_size if chunked else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """query [S, B, N, D], key [S, B, G, D], value [S, B, G, V], attention_mask None (causal) or bool
        [B, 1, T, T], True where attention is allowed -> [S, B, N * V]."""
        if self._model.use_qk_norm and self._rotates:
            query, key = (F.rms_norm(x, x.shape[-1:], eps=self._model.rms_norm_eps) for x in (query, key))
        elif self._model.attn_temperature_tuning and not self._rotates:
            query = query * self._temperature(query.shape[0], query.device).type_as(query)
        length = query.shape[0] * self.ranks
        if self._chunk and length > self._chunk:
            attention_mask = _chunked(length, self._chunk, query.device)
        if self.ranks == 1:
            out = self._attend(query, key, value, attention_mask)
        else:
            out = self._attend_split(query, key, value, attention_mask)
        return out.flatten(2)

    def _temperature(self, tokens: int, device: torch.device) -> torch.Tensor:
        """Growth of the queries with their position, float32 [S, 1, 1, 1]."""
        model = self._model
        positions = torch.arange(1, tokens * self.ranks + 1, dtype=torch.float32, device=device)
        growth = 1 + (model.attn_scale or 0.0) * torch.log1p(torch.floor(positions / (model.floor_scale or 1)))
        return on_this_rank(growth[None], self.ranks, self.rank)[0, :, None, None, None]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.permute(2, 0, 1, 3)

    def _attend_split(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        keys, values = (self._whole(tensor) for tensor in (key, value))
        size = query.shape[0] // 2
        parts = []
        for part, chunk in zip(query.chunk(2), (self.rank, 2 * self.ranks - 1 - self.rank), strict=True):
            seen = (chunk + 1) * size
            allowed = _causal(size, seen, query.device) if mask is None else mask[..., seen - size : seen, :seen]
            parts.append(self._attend(part, keys[:seen], values[:seen], allowed))
        return torch.cat(parts)

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """[S, ...] of every rank, in the order of the sequence: [T, ...]."""
        gathered = gather_from_sequence_parallel_region(tensor, group=self._group)
        chunks = gathered.chunk(2 * self.ranks)
        return torch.cat([*chunks[::2], *reversed(chunks[1::2])])


def _causal(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Whether each of the last `queries` positions sees each of `keys`: bool [queries, keys]."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _chunked(length: int, chunk: int, device: torch.device) -> torch.Tensor:
    """Whether each of `length` positions sees each: those before it in its own chunk. bool [T, T]."""
    part = torch.arange(length, device=device) // chunk
    return _causal(length, length, device) & (part[:, None] == part[None, :])


def within_documents(positions: torch.Tensor) -> torch.Tensor:
    """positions [B, T], which restart at 0 with each document -> whether each sees each, bool [B, 1, T, T]."""
    document = (positions == 0).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    return (same & _causal(positions.shape[1], positions.shape[1], positions.device)).unsqueeze(1)


def on_this_rank(tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """The two chunks of [B, T] that context-parallel rank `rank` of `ranks` works on: [B, S]."""
    if ranks == 1:
        return tensor
    chunks = tensor.chunk(2 * ranks, dim=1)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]], dim=1)
