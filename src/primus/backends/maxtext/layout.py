"""Where the elements of MaxText's parameters live in a Hugging Face checkpoint. Needs neither jax nor MaxText."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from primus.backends.maxtext.layout_parts import Stack, expert_projection, projection, transposed, vectors
from primus.checkpoints.weights import Source, Weight, balancing_bias, norm, plain
from primus.config.dimensions import expert_width, head_dim, key_value_heads, shared_experts
from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.config.layers import dense_layers

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""What Hugging Face calls the matrices of a feed-forward that MaxText calls ``wi_0``, ``wi_1`` and ``wo``."""


def weights(model: Model) -> list[Weight]:
    """Every parameter of a model, and the biases that balance its experts, under their paths in MaxText's state."""
    return list(_weights(model))


def _weights(model: Model) -> Iterator[Weight]:
    vocabulary, hidden = model.vocab_size, model.hidden_size
    yield plain("token_embedder.embedding", "model.embed_tokens.weight", vocabulary, hidden)
    yield norm("decoder.decoder_norm.scale", "model.norm.weight", hidden)
    if not model.tie_word_embeddings:
        yield transposed("decoder.logits_dense.kernel", "lm_head.weight", hidden, vocabulary)
    for stack in stacks(model):
        yield from _latent_attention(model, stack) if latent_attention(model.model_type) else _attention(model, stack)
        for native, name in (
            ("pre_self_attention_layer_norm", "input_layernorm"),
            ("post_self_attention_layer_norm", "post_attention_layernorm"),
        ):
            yield vectors(stack, f"{native}.scale", f"{name}.weight", (hidden,), "ones")
        yield from _feed_forwards(model, stack)


def stacks(model: Model) -> list[Stack]:
    """MaxText keeps the dense layers of DeepSeek's models apart from those with experts."""
    layers, dense = model.num_hidden_layers, dense_layers(model)
    if not latent_attention(model.model_type):
        return [Stack("decoder.layers", range(layers))]
    both = (Stack("decoder.dense_layers", range(dense)), Stack("decoder.moe_layers", range(dense, layers)))
    return [stack for stack in both if stack.layers]


def _attention(model: Model, stack: Stack) -> Iterator[Weight]:
    hidden, heads, width = model.hidden_size, model.num_attention_heads, head_dim(model)
    kv_heads = key_value_heads(model)
    for native, letter, count in (("query", "q", heads), ("key", "k", kv_heads), ("value", "v", kv_heads)):
        ours, theirs = f"self_attention.{native}", f"self_attn.{letter}_proj"
        yield projection(stack, f"{ours}.kernel", f"{theirs}.weight", (hidden,), (count, width))
        if model.model_type == "qwen2":
            yield vectors(stack, f"{ours}.bias", f"{theirs}.bias", (count, width), "zeros")
    yield projection(stack, "self_attention.out.kernel", "self_attn.o_proj.weight", (heads, width), (hidden,))
    if model.model_type in ("qwen3", "qwen3_moe"):
        for native, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            yield vectors(stack, f"self_attention.{native}.scale", f"self_attn.{name}.weight", (width,), "ones")


def _latent_attention(model: Model, stack: Stack) -> Iterator[Weight]:
    hidden, heads, query_rank = model.hidden_size, model.num_attention_heads, model.q_lora_rank or 0
    rank, nope, rope = model.kv_lora_rank or 0, model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value, query = model.v_head_dim or 0, (heads, nope + rope)
    # The rotary rows of this family are neighbours on both sides.
    matrices = [
        ("wkv_a", "kv_a_proj_with_mqa", (hidden,), (rank + rope,)),
        ("wkv_b", "kv_b_proj", (rank,), (heads, nope + value)),
        ("out", "o_proj", (heads, value), (hidden,)),
    ]
    norms = [("kv_norm", "kv_a_layernorm", rank)]
    if query_rank:
        matrices += [("wq_a", "q_a_proj", (hidden,), (query_rank,)), ("wq_b", "q_b_proj", (query_rank,), query)]
        norms += [("q_norm", "q_a_layernorm", query_rank)]
    else:
        matrices += [("query", "q_proj", (hidden,), query)]
    for native, name, inputs, outputs in matrices:
        yield projection(stack, f"self_attention.{native}.kernel", f"self_attn.{name}.weight", inputs, outputs)
    for native, name, width in norms:
        yield vectors(stack, f"self_attention.{native}.scale", f"self_attn.{name}.weight", (width,), "ones")


def _feed_forwards(model: Model, stack: Stack) -> Iterator[Weight]:
    if not model.num_experts or stack.native == "decoder.dense_layers":
        yield from _feed_forward(stack, "mlp", "mlp", model.hidden_size, model.intermediate_size)
    elif not latent_attention(model.model_type):
        yield from _experts(model, stack, "moe_block")
    else:
        block, width = "DeepSeekMoeBlock_0", expert_width(model) * shared_experts(model)
        yield from _experts(model, stack, f"{block}.MoeBlock_0")
        yield from _feed_forward(stack, f"{block}.shared_experts", "mlp.shared_experts", model.hidden_size, width)


def _feed_forward(stack: Stack, native: str, name: str, hidden: int, width: int) -> Iterator[Weight]:
    gate, up, down = (f"{name}.{each}.weight" for each in PROJECTIONS)
    yield projection(stack, f"{native}.wi_0.kernel", gate, (hidden,), (width,))
    yield projection(stack, f"{native}.wi_1.kernel", up, (hidden,), (width,))
    yield projection(stack, f"{native}.wo.kernel", down, (width,), (hidden,))


def _experts(model: Model, stack: Stack, native: str) -> Iterator[Weight]:
    hidden, width, count = model.hidden_size, expert_width(model), model.num_experts or 0
    name, projections = "mlp", PROJECTIONS
    if model.model_type == "mixtral":
        name, projections = "block_sparse_moe", ("w1", "w3", "w2")
    gate, up, down = (f"{name}.experts.{{}}.{each}.weight" for each in projections)
    yield projection(stack, f"{native}.gate.kernel", f"{name}.gate.weight", (hidden,), (count,))
    yield _balance(model, stack, f"{native}.gate.bias", count)
    yield expert_projection(stack, f"{native}.wi_0", gate, (count, hidden, width))
    yield expert_projection(stack, f"{native}.wi_1", up, (count, hidden, width))
    yield expert_projection(stack, f"{native}.wo", down, (count, width, hidden))


def _balance(model: Model, stack: Stack, native: str, count: int) -> Weight:
    """The biases that move the choice of experts towards balance, where there are any."""
    weight = vectors(stack, native, "mlp.gate.e_score_correction_bias", (count,), "zeros")
    if model.model_type == "deepseek_v3":
        return replace(weight, optional=True)
    sources = tuple(Source(balancing_bias(layer), (count,)) for layer in stack.layers)
    return replace(weight, sources=sources, optional=True, ours=True)
