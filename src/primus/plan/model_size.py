"""Exact parameter counts and training FLOPs from the portable architecture fields.

Counts are of trained parameters. The bias that steers expert load in DeepSeek-V3 is not trained by gradients (a buffer
in every implementation) and DeepSeek-V3's extra prediction layer is not part of the model trained here, so neither
is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from primus.config.experiment import Model


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


def head_dim(model: Model) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def key_value_heads(model: Model) -> int:
    return model.num_key_value_heads or model.num_attention_heads


def expert_width(model: Model) -> int:
    """Feed-forward width of one routed expert. GPT-OSS calls it `intermediate_size`, as it has no dense layers."""
    return model.moe_intermediate_size or model.intermediate_size


def dense_layers(model: Model) -> int:
    """Layers with a dense feed-forward; the others are mixtures of experts."""
    if not model.num_experts:
        return model.num_hidden_layers
    return min(model.first_k_dense_replace or 0, model.num_hidden_layers)


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
    common += dense * 3 * hidden * model.intermediate_size
    total = active = common
    if sparse:
        experts = model.num_experts or 0
        router_bias = experts if model.model_type == "gpt_oss" else 0
        shared = 3 * hidden * expert_width(model) * (model.n_shared_experts or 0)
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
    Layers with a sliding window are counted with the window: no kernel needs to compute more.
    """
    size = measure(model)
    matmul = size.active if model.tie_word_embeddings else size.active - size.embedding
    if model.model_type == "deepseek_v3":
        widths = (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0) + (model.v_head_dim or 0)
    else:
        widths = 2 * head_dim(model)
    layers = model.num_hidden_layers
    windowed = (layers + 1) // 2 if model.sliding_window else 0  # GPT-OSS alternates, beginning with a window
    span = windowed * min(seq_length, model.sliding_window or seq_length) + (layers - windowed) * seq_length
    return float(6 * matmul + 6 * model.num_attention_heads * widths * span)


def _attention(model: Model) -> int:
    """Parameters of one attention block, norms inside it included."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    if model.model_type == "deepseek_v3":
        query_width = (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0)
        value_width, latent = model.v_head_dim or 0, model.kv_lora_rank or 0
        rank = model.q_lora_rank or 0
        query = hidden * rank + rank + rank * heads * query_width if rank else hidden * heads * query_width
        compress = hidden * (latent + (model.qk_rope_head_dim or 0)) + latent
        expand = latent * heads * ((model.qk_nope_head_dim or 0) + value_width)
        return query + compress + expand + heads * value_width * hidden
    width, kv_heads = head_dim(model), key_value_heads(model)
    count = 2 * hidden * heads * width + 2 * hidden * kv_heads * width
    if model.model_type == "qwen3":
        count += 2 * width  # norms of queries and keys
    if model.model_type == "gpt_oss":
        count += (heads + 2 * kv_heads) * width + hidden + heads  # biases of q, k, v and output; one sink a head
    return count


def _expert(model: Model) -> int:
    hidden, width = model.hidden_size, expert_width(model)
    biases = 2 * width + hidden if model.model_type == "gpt_oss" else 0
    return 3 * hidden * width + biases
