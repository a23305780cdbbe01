"""Megatron's tensors, whole and numbered through the model, and their places in a Hugging Face checkpoint.

Needs neither torch nor Megatron.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from primus.checkpoints.weights import (
    Rows,
    Source,
    Weight,
    absent,
    balancing_bias,
    experts,
    fused_qkv,
    norm,
    plain,
    transposed_experts,
)
from primus.config.dimensions import dense_width, expert_width, shared_experts
from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.config.layers import has_experts

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
EXPERTS = {"mixtral": ("w1", "w3", "w2")}
MIXTURES = {"mixtral": "block_sparse_moe", "llama4_text": "feed_forward"}
"""What a family calls these, where it does not say it as the others do."""


def weights(model: Model, ahead: int = 0) -> list[Weight]:
    """Every parameter and persistent buffer of `model`. A tied output projection is the embedding. ahead: layers that
    predict tokens further ahead, which DeepSeek-V3's checkpoints number after the others."""
    embedding, shape = "model.embed_tokens.weight", (model.vocab_size, model.hidden_size)
    found = [plain("embedding.word_embeddings.weight", embedding, *shape)]
    if not model.tie_word_embeddings:
        found.append(plain("output_layer.weight", "lm_head.weight", *shape))
    found.append(norm("decoder.final_layernorm.weight", "model.norm.weight", model.hidden_size))
    for layer in range(model.num_hidden_layers):
        found += _layer(model, layer, f"decoder.layers.{layer}", like=layer)
    for number in range(ahead):
        found += _prediction(model, number)
    return found


def _prediction(model: Model, number: int) -> Iterator[Weight]:
    layer, native, hidden = model.num_hidden_layers + number, f"mtp.layers.{number}", model.hidden_size
    hf = f"model.layers.{layer}"
    yield norm(f"{native}.enorm.weight", f"{hf}.enorm.weight", hidden)
    yield norm(f"{native}.hnorm.weight", f"{hf}.hnorm.weight", hidden)
    yield plain(f"{native}.eh_proj.weight", f"{hf}.eh_proj.weight", hidden, 2 * hidden)
    yield norm(f"{native}.final_layernorm.weight", f"{hf}.shared_head.norm.weight", hidden)
    yield from _layer(model, layer, f"{native}.layer", like=model.num_hidden_layers - 1)


def _layer(model: Model, layer: int, native: str, *, like: int) -> Iterator[Weight]:
    """like: the layer whose kind it is."""
    hf, hidden = f"model.layers.{layer}", model.hidden_size
    yield norm(f"{native}.input_layernorm.weight", f"{hf}.input_layernorm.weight", hidden)
    yield norm(f"{native}.pre_mlp_layernorm.weight", f"{hf}.post_attention_layernorm.weight", hidden)
    if latent_attention(model.model_type):
        yield from _latent_attention(model, f"{native}.self_attention", f"{hf}.self_attn")
    else:
        yield from _attention(model, f"{native}.self_attention", f"{hf}.self_attn")
    if has_experts(model, like):
        yield from _mixture(model, layer, f"{native}.mlp", f"{hf}.{MIXTURES.get(model.model_type, 'mlp')}")
    else:
        inner = "feed_forward" if model.model_type == "llama4_text" else "mlp"
        yield from _feed_forward(f"{native}.mlp", f"{hf}.{inner}", hidden, dense_width(model))


def _attention(model: Model, native: str, hf: str) -> Iterator[Weight]:
    hidden, heads = model.hidden_size, model.num_attention_heads
    kv_heads, width = model.num_key_value_heads or heads, model.head_dim or hidden // heads
    biased = model.model_type == "qwen2"
    for kind in ("weight", "bias") if biased else ("weight",):
        columns = (hidden,) if kind == "weight" else ()
        qkv = [
            plain(f"{native}.{letter}", f"{hf}.{letter}_proj.{kind}", count * width, *columns)
            for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        ]
        yield fused_qkv(f"{native}.linear_qkv.{kind}", qkv, heads, kv_heads, width)
    if model.model_type in ("qwen3", "qwen3_moe"):
        yield norm(f"{native}.q_layernorm.weight", f"{hf}.q_norm.weight", width)
        yield norm(f"{native}.k_layernorm.weight", f"{hf}.k_norm.weight", width)
    yield plain(f"{native}.linear_proj.weight", f"{hf}.o_proj.weight", hidden, heads * width)


def _latent_attention(model: Model, native: str, hf: str) -> Iterator[Weight]:
    hidden, heads, query_rank = model.hidden_size, model.num_attention_heads, model.q_lora_rank or 0
    rank, nope, rope = model.kv_lora_rank or 0, model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value, query_width = model.v_head_dim or 0, heads * (nope + rope)
    if query_rank:
        yield plain(f"{native}.linear_q_down_proj.weight", f"{hf}.q_a_proj.weight", query_rank, hidden)
        yield norm(f"{native}.q_layernorm.weight", f"{hf}.q_a_layernorm.weight", query_rank)
        yield plain(f"{native}.linear_q_up_proj.weight", f"{hf}.q_b_proj.weight", query_width, query_rank)
    else:
        yield plain(f"{native}.linear_q_proj.weight", f"{hf}.q_proj.weight", query_width, hidden)
    yield plain(f"{native}.linear_kv_down_proj.weight", f"{hf}.kv_a_proj_with_mqa.weight", rank + rope, hidden)
    yield norm(f"{native}.kv_layernorm.weight", f"{hf}.kv_a_layernorm.weight", rank)
    yield plain(f"{native}.linear_kv_up_proj.weight", f"{hf}.kv_b_proj.weight", heads * (nope + value), rank)
    yield plain(f"{native}.linear_proj.weight", f"{hf}.o_proj.weight", hidden, heads * value)


def _mixture(model: Model, layer: int, native: str, hf: str) -> Iterator[Weight]:
    hidden, width, count = model.hidden_size, expert_width(model), model.num_experts or 0
    llama4 = model.model_type == "llama4_text"
    yield plain(f"{native}.router.weight", f"{hf}.{'router' if llama4 else 'gate'}.weight", count, hidden)
    bias = f"{native}.router.expert_bias"
    if model.model_type == "deepseek_v3":
        yield plain(bias, f"{hf}.gate.e_score_correction_bias", count, optional=True)
    else:
        yield absent(bias, balancing_bias(layer), count)
    inputs, outputs = f"{native}.experts.linear_fc1.weight", f"{native}.experts.linear_fc2.weight"
    if llama4:
        yield transposed_experts(inputs, f"{hf}.experts.gate_up_proj", count, 2 * width, hidden)
        yield transposed_experts(outputs, f"{hf}.experts.down_proj", count, hidden, width)
    else:
        gate, up, down = EXPERTS.get(model.model_type, PROJECTIONS)
        yield gated_experts(inputs, [f"{hf}.experts.{{}}.{name}.weight" for name in (gate, up)], count, width, hidden)
        yield experts(outputs, f"{hf}.experts.{{}}.{down}.weight", count, hidden, width)
    shared = width * shared_experts(model)
    if shared:
        name = "shared_expert" if llama4 else "shared_experts"
        yield from _feed_forward(f"{native}.shared_experts", f"{hf}.{name}", hidden, shared)


def _feed_forward(native: str, hf: str, hidden: int, width: int) -> Iterator[Weight]:
    gate, up, down = PROJECTIONS
    yield stacked(f"{native}.linear_fc1.weight", [f"{hf}.{gate}.weight", f"{hf}.{up}.weight"], width, hidden)
    yield plain(f"{native}.linear_fc2.weight", f"{hf}.{down}.weight", hidden, width)


def stacked(native: str, names: Sequence[str], rows: int, columns: int) -> Weight:
    """Several Hugging Face tensors [rows, columns], one above the other."""

    def locate(wanted: Rows) -> tuple[Rows, Rows]:
        which, row = np.divmod(wanted, rows)
        return which, row * columns

    sources = tuple(Source(name, (rows, columns)) for name in names)
    return Weight(native, (rows * len(names), columns), sources, locate)


def gated_experts(native: str, names: Sequence[str], count: int, rows: int, columns: int) -> Weight:
    """Native [count, gate and up, in]; for each expert two Hugging Face tensors [rows, columns], `names` holding ``{}``
    for its number."""
    tall = stacked(native, [name.format(number) for number in range(count) for name in names], rows, columns)
    return replace(tall, shape=(count, rows * len(names), columns))
