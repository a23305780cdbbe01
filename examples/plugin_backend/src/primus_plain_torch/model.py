"""Llama in plain PyTorch. Modules carry Hugging Face's names: by them the random start knows each tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from primus.config.experiment import Model


class Attention(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
        queries = model.num_attention_heads * self.head_dim
        keys = (model.num_key_value_heads or model.num_attention_heads) * self.head_dim
        self.q_proj = nn.Linear(model.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(model.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(model.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, model.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class FeedForward(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(model.hidden_size, model.intermediate_size, bias=False)
        self.up_proj = nn.Linear(model.hidden_size, model.intermediate_size, bias=False)
        self.down_proj = nn.Linear(model.intermediate_size, model.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(model.hidden_size, eps=model.rms_norm_eps)
        self.self_attn = Attention(model)
        self.post_attention_layernorm = nn.RMSNorm(model.hidden_size, eps=model.rms_norm_eps)
        self.mlp = FeedForward(model)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Token ids [B, S] to hidden states [B, S, hidden]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
        self.frequencies = model.rope_theta ** -(torch.arange(0, head_dim, 2) / head_dim)
        self.embed_tokens = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_hidden_layers))
        self.norm = nn.RMSNorm(model.hidden_size, eps=model.rms_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(tokens.shape[1]), self.frequencies).repeat(1, 2)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """Token ids [B, S] to logits [B, S, vocabulary]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = Decoder(model)
        self.lm_head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        if model.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model(tokens))
        return logits
