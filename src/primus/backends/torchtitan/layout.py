"""TorchTitan's tensors of each family and their places in a Hugging Face checkpoint.

Needs neither torch nor TorchTitan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from primus.backends.torchtitan.weights import Weight, fused_qkv, norm, plain, rotary_pairs
from primus.config.experiment import Model


def weights(model: Model, *, fused: bool = True) -> list[Weight]:
    """Every parameter and persistent buffer of `model`.

    fused: under the names of the module's parameters (one ``wqkv``); otherwise under those of its state dict and of
    checkpoints (``wq``, ``wk``, ``wv``).
    """
    layer_weights = LAYERS[model.model_type]
    found = list(_root(model))
    for layer in range(model.num_hidden_layers):
        found += layer_weights(model, layer, f"layers.{layer}", f"model.layers.{layer}", fused)
    return found


def _root(model: Model) -> Iterator[Weight]:
    embedding = "model.embed_tokens.weight"
    shape = (model.vocab_size, model.hidden_size)
    yield plain("tok_embeddings.weight", embedding, *shape)
    yield plain("lm_head.weight", embedding if model.tie_word_embeddings else "lm_head.weight", *shape)
    yield norm("norm.weight", "model.norm.weight", model.hidden_size)


def _llama(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    yield from _attention(model, native, hf, fused, pairs=True)
    yield from _feed_forward(f"{native}.feed_forward", f"{hf}.mlp", model.hidden_size, model.intermediate_size)
    yield from _norms(model, native, hf)


def _qwen3(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    head_dim = _heads(model)[2]
    yield from _attention(model, native, hf, fused)
    yield norm(f"{native}.attention.q_norm.weight", f"{hf}.self_attn.q_norm.weight", head_dim)
    yield norm(f"{native}.attention.k_norm.weight", f"{hf}.self_attn.k_norm.weight", head_dim)
    yield from _feed_forward(f"{native}.feed_forward", f"{hf}.mlp", model.hidden_size, model.intermediate_size)
    yield from _norms(model, native, hf)


LAYERS: dict[str, Callable[[Model, int, str, str, bool], Iterator[Weight]]] = {
    "llama": _llama,
    "qwen3": _qwen3,
}


def _heads(model: Model) -> tuple[int, int, int]:
    """Query heads, key/value heads, width of a head."""
    heads = model.num_attention_heads
    return heads, model.num_key_value_heads or heads, model.head_dim or model.hidden_size // heads


def _attention(
    model: Model, native: str, hf: str, fused: bool, *, pairs: bool = False, bias: bool = False
) -> Iterator[Weight]:
    """Grouped-query attention. pairs: the native rotary embedding turns neighbouring rows."""
    heads, kv_heads, head_dim = _heads(model)
    hidden = model.hidden_size
    ours, theirs = f"{native}.attention.qkv_linear", f"{hf}.self_attn"
    parts = {"q": heads, "k": kv_heads, "v": kv_heads}
    for kind in ("weight", "bias") if bias else ("weight",):
        columns = (hidden,) if kind == "weight" else ()
        qkv = []
        for letter, count in parts.items():
            ours_name, theirs_name = f"{ours}.w{letter}.{kind}", f"{theirs}.{letter}_proj.{kind}"
            if pairs and letter != "v":
                qkv.append(rotary_pairs(ours_name, theirs_name, count, head_dim, hidden))
            else:
                qkv.append(plain(ours_name, theirs_name, count * head_dim, *columns))
        yield from [fused_qkv(f"{ours}.wqkv.{kind}", qkv, heads, kv_heads, head_dim)] if fused else qkv
    yield plain(f"{native}.attention.wo.weight", f"{theirs}.o_proj.weight", hidden, heads * head_dim)
    if bias:
        yield plain(f"{native}.attention.wo.bias", f"{theirs}.o_proj.bias", hidden)


def _feed_forward(native: str, hf: str, hidden: int, width: int) -> Iterator[Weight]:
    yield plain(f"{native}.w1.weight", f"{hf}.gate_proj.weight", width, hidden)
    yield plain(f"{native}.w3.weight", f"{hf}.up_proj.weight", width, hidden)
    yield plain(f"{native}.w2.weight", f"{hf}.down_proj.weight", hidden, width)


def _norms(model: Model, native: str, hf: str) -> Iterator[Weight]:
    yield norm(f"{native}.attention_norm.weight", f"{hf}.input_layernorm.weight", model.hidden_size)
    yield norm(f"{native}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", model.hidden_size)
