"""Exact parameter counts and training FLOPs from the portable architecture fields.

Counts are of trained parameters. The bias that steers expert load in DeepSeek-V3 is not trained by gradients (a buffer
in every implementation) and DeepSeek-V3's extra prediction layer is not part of the model trained here, so neither
is counted; nor is what Llama 4 sees with.
"""

from __future__ import annotations

from dataclasses import dataclass

from primus.config.dimensions import dense_width, expert_width, head_dim, key_value_heads, shared_experts
from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.config.layers import dense_layers, local_layers


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters.

    total: all of them; tied embeddings once.
    active: those one token meets: all but the experts it is not routed to.
    embedding: the input embedding; a lookup, no arithmetic, unless it is tied to the output projection.
    """

    total: int
    active: int
    embedding: int


def measure(model: Model) -> ModelSize:
    """Count the parameters of `model`."""
    hidden = model.hidden_size
    dense = dense_layers(model)
    sparse = model.num_hidden_layers - dense
    embedding = model.vocab_size * hidden
    common = embedding + hidden  # final norm
    if not model.tie_word_embeddings:
        common += embedding
    common += model.num_hidden_layers * (_attention(model) + 2 * hidden)
    common += dense * 3 * hidden * dense_width(model)
    total = active = common
    if sparse:
        experts = model.num_experts or 0
        router_bias = experts if model.model_type == "gpt_oss" else 0
        shared = 3 * hidden * expert_width(model) * shared_experts(model)
        always = hidden * experts + router_bias + shared
        total += sparse * (always + experts * _expert(model))
        active += sparse * (always + (model.num_experts_per_tok or 0) * _expert(model))
    return ModelSize(total, active, embedding)


def flops_per_token(model: Model, seq_length: int) -> float:
    """Training FLOPs a token, forward and backward.

    ``6 N`` plus ``6 s (d_qk + d_v)`` summed over layers and heads, after appendix B of "PaLM: Scaling Language Modeling
    with Pathways" (arXiv:2204.02311), whose ``12 L H Q T`` is the same term for ``d_qk = d_v = Q``. N counts the
    parameters a token meets, without the embedding's lookup. As there, and as in other published utilisation figures,
    causal attention is not halved (every token counts the whole sequence) and recomputed activations count nothing.
    Layers that attend within a window or a chunk are counted with it: no kernel needs to compute more.
    """
    size = measure(model)
    matmul = size.active if model.tie_word_embeddings else size.active - size.embedding
    if latent_attention(model.model_type):
        widths = (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0) + (model.v_head_dim or 0)
    else:
        widths = 2 * head_dim(model)
    local = local_layers(model)
    span = local * _reach(model, seq_length) + (model.num_hidden_layers - local) * seq_length
    return float(6 * matmul + 6 * model.num_attention_heads * widths * span)


def _reach(model: Model, seq_length: int) -> float:
    """Tokens that one attends to in a layer that is not global, on average, causality aside."""
    if model.attention_chunk_size:
        chunks, rest = divmod(seq_length, model.attention_chunk_size)
        return (chunks * model.attention_chunk_size**2 + rest**2) / seq_length
    return min(seq_length, model.sliding_window or seq_length)


def _attention(model: Model) -> int:
    """Parameters of one attention block, norms inside it included."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    if latent_attention(model.model_type):
        query_width = (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0)
        value_width, latent = model.v_head_dim or 0, model.kv_lora_rank or 0
        rank = model.q_lora_rank or 0
        query = hidden * rank + rank + rank * heads * query_width if rank else hidden * heads * query_width
        compress = hidden * (latent + (model.qk_rope_head_dim or 0)) + latent
        expand = latent * heads * ((model.qk_nope_head_dim or 0) + value_width)
        return query + compress + expand + heads * value_width * hidden
    width, kv_heads = head_dim(model), key_value_heads(model)
    count = 2 * hidden * heads * width + 2 * hidden * kv_heads * width
    if model.model_type in ("qwen3", "qwen3_moe"):
        count += 2 * width  # norms of queries and keys; Llama 4's have no weights
    if model.model_type == "qwen2":
        count += (heads + 2 * kv_heads) * width  # biases of q, k and v
    if model.model_type == "gpt_oss":
        count += (heads + 2 * kv_heads) * width + hidden + heads  # biases of q, k, v and output; one sink a head
    return count


def _expert(model: Model) -> int:
    hidden, width = model.hidden_size, expert_width(model)
    biases = 2 * width + hidden if model.model_type == "gpt_oss" else 0
    return 3 * hidden * width + biases
