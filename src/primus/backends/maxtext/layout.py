"""Where the elements of MaxText's parameters live in a Hugging Face checkpoint.

MaxText keeps the layers of a model in one array each, the layer as its first dimension (``param_scan_axis: 0``), and
projections as [inputs, heads, width]: the transpose of what Hugging Face stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from primus.checkpoints.weights import Rows, Source, Start, Weight, norm, plain
from primus.config.dimensions import head_dim, key_value_heads
from primus.config.experiment import Model

LAYERS = "decoder.layers"


def weights(model: Model) -> list[Weight]:
    """Every parameter of a model, under its path in MaxText's state."""
    return list(_weights(model))


def _weights(model: Model) -> Iterator[Weight]:
    vocabulary, hidden = model.vocab_size, model.hidden_size
    yield plain("token_embedder.embedding", "model.embed_tokens.weight", vocabulary, hidden)
    yield norm("decoder.decoder_norm.scale", "model.norm.weight", hidden)
    if not model.tie_word_embeddings:
        yield transposed("decoder.logits_dense.kernel", "lm_head.weight", hidden, vocabulary)
    yield from _attention(model)
    for native, name in (
        ("pre_self_attention_layer_norm", "input_layernorm"),
        ("post_self_attention_layer_norm", "post_attention_layernorm"),
    ):
        yield _vectors(model, f"{native}.scale", f"{name}.weight", (hidden,), "ones")
    for native, name in (("wi_0", "gate_proj"), ("wi_1", "up_proj")):
        yield _projection(model, f"mlp.{native}.kernel", f"mlp.{name}.weight", (hidden,), (model.intermediate_size,))
    yield _projection(model, "mlp.wo.kernel", "mlp.down_proj.weight", (model.intermediate_size,), (hidden,))


def _attention(model: Model) -> Iterator[Weight]:
    hidden, heads, width = model.hidden_size, model.num_attention_heads, head_dim(model)
    kv_heads = key_value_heads(model)
    for native, letter, count in (("query", "q", heads), ("key", "k", kv_heads), ("value", "v", kv_heads)):
        ours, theirs = f"self_attention.{native}", f"self_attn.{letter}_proj"
        yield _projection(model, f"{ours}.kernel", f"{theirs}.weight", (hidden,), (count, width))
        if model.model_type == "qwen2":
            yield _vectors(model, f"{ours}.bias", f"{theirs}.bias", (count, width), "zeros")
    yield _projection(model, "self_attention.out.kernel", "self_attn.o_proj.weight", (heads, width), (hidden,))
    if model.model_type == "qwen3":
        for native, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            yield _vectors(model, f"self_attention.{native}.scale", f"self_attn.{name}.weight", (width,), "ones")


def transposed(native: str, name: str, rows: int, columns: int) -> Weight:
    """Native [rows, columns], Hugging Face's the other way round."""

    def locate(wanted: Rows) -> tuple[Rows, Rows]:
        return np.zeros_like(wanted), wanted

    return Weight(native, (rows, columns), (Source(name, (columns, rows)),), locate, stride=rows)


def _projection(model: Model, native: str, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> Weight:
    """Native [layers, *inputs, *outputs]; a layer's Hugging Face tensor is [outputs, inputs], each flattened."""
    width = prod(inputs)

    def locate(row: Rows) -> Rows:
        """`row` counts inputs and all outputs but the last dimension."""
        each, head = np.divmod(row, prod(outputs[:-1]))
        return head * (outputs[-1] * width) + each

    sources = _sources(model, name, (prod(outputs), width))
    return _layered(native, (*inputs, *outputs), sources, locate, stride=width)


def _vectors(model: Model, native: str, name: str, shape: Sequence[int], start: Start) -> Weight:
    """Native [layers, *shape]; a layer's Hugging Face tensor is the same, flattened."""
    return _layered(native, shape, _sources(model, name, (prod(shape),)), lambda row: row * shape[-1], start=start)


def _sources(model: Model, name: str, shape: tuple[int, ...]) -> tuple[Source, ...]:
    """`name` of every layer."""
    return tuple(Source(f"model.layers.{layer}.{name}", shape) for layer in range(model.num_hidden_layers))


def _layered(
    native: str,
    shape: Sequence[int],
    sources: tuple[Source, ...],
    locate: Callable[[Rows], Rows],
    *,
    stride: int = 1,
    start: Start = "normal",
) -> Weight:
    """Native [layers, *shape], each layer from one of `sources`. locate: row of a layer -> flat offset of its first
    element there."""
    rows = prod(shape[:-1])

    def find(wanted: Rows) -> tuple[Rows, Rows]:
        layer, row = np.divmod(wanted, rows)
        return layer, locate(row)

    return Weight(f"{LAYERS}.{native}", (len(sources), *shape), sources, find, stride=stride, start=start)
