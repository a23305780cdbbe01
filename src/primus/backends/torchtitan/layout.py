"""TorchTitan's tensors of each family and their places in a Hugging Face checkpoint.

Needs neither torch nor TorchTitan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from primus.checkpoints.weights import (
    Weight,
    absent,
    balancing_bias,
    experts,
    fused_qkv,
    norm,
    paired_experts,
    plain,
    rotary_pairs,
    transposed_experts,
)
from primus.config.dimensions import dense_width, expert_width, shared_experts
from primus.config.experiment import Model
from primus.config.layers import has_experts


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


def _qwen2(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    yield from _attention(model, native, hf, fused, biases="qkv")
    yield from _feed_forward(f"{native}.feed_forward", f"{hf}.mlp", model.hidden_size, model.intermediate_size)
    yield from _norms(model, native, hf)


def _qwen3(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    head_dim = _heads(model)[2]
    yield from _attention(model, native, hf, fused)
    yield norm(f"{native}.attention.q_norm.weight", f"{hf}.self_attn.q_norm.weight", head_dim)
    yield norm(f"{native}.attention.k_norm.weight", f"{hf}.self_attn.k_norm.weight", head_dim)
    if model.num_experts:
        yield from _mixture(model, layer, f"{native}.moe", f"{hf}.mlp")
    else:
        yield from _feed_forward(f"{native}.feed_forward", f"{hf}.mlp", model.hidden_size, model.intermediate_size)
    yield from _norms(model, native, hf)


def _mixtral(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    yield from _attention(model, native, hf, fused)
    yield from _mixture(model, layer, f"{native}.moe", f"{hf}.block_sparse_moe", ("w1", "w3", "w2"))
    yield from _norms(model, native, hf)


def _llama4_text(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    hidden, width, count = model.hidden_size, expert_width(model), model.num_experts or 0
    theirs = f"{hf}.feed_forward"
    # The rotary rows of this family are neighbours on both sides.
    yield from _attention(model, native, hf, fused)
    yield from _norms(model, native, hf)
    if not has_experts(model, layer):
        yield from _feed_forward(f"{native}.feed_forward", theirs, hidden, dense_width(model))
        return
    inner = f"{native}.moe.routed_experts.inner_experts"
    yield from _router(model, layer, f"{native}.moe", f"{theirs}.router")
    yield paired_experts(f"{inner}.w13_EGD", f"{theirs}.experts.gate_up_proj", count, width, hidden)
    yield transposed_experts(f"{inner}.w2_EDF", f"{theirs}.experts.down_proj", count, hidden, width)
    shared = width * shared_experts(model)
    yield from _feed_forward(f"{native}.moe.shared_experts", f"{theirs}.shared_expert", hidden, shared)


def _deepseek(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    hidden, heads, query_rank = model.hidden_size, model.num_attention_heads, model.q_lora_rank or 0
    rank, nope, rope = model.kv_lora_rank or 0, model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value, query_width = model.v_head_dim or 0, heads * (nope + rope)
    ours, theirs = f"{native}.attention", f"{hf}.self_attn"
    # The rotary rows of this family are neighbours on both sides.
    if query_rank:
        yield plain(f"{ours}.wq_a.weight", f"{theirs}.q_a_proj.weight", query_rank, hidden)
        yield norm(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight", query_rank)
        yield plain(f"{ours}.wq_b.weight", f"{theirs}.q_b_proj.weight", query_width, query_rank)
    else:
        yield plain(f"{ours}.wq.weight", f"{theirs}.q_proj.weight", query_width, hidden)
    yield plain(f"{ours}.wkv_a.weight", f"{theirs}.kv_a_proj_with_mqa.weight", rank + rope, hidden)
    yield norm(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight", rank)
    yield plain(f"{ours}.wkv_b.weight", f"{theirs}.kv_b_proj.weight", heads * (nope + value), rank)
    yield plain(f"{ours}.wo.weight", f"{theirs}.o_proj.weight", hidden, heads * value)
    yield from _norms(model, native, hf)
    if has_experts(model, layer):
        yield from _mixture(model, layer, f"{native}.moe", f"{hf}.mlp")
    else:
        yield from _feed_forward(f"{native}.feed_forward", f"{hf}.mlp", hidden, model.intermediate_size)


def _gpt_oss(model: Model, layer: int, native: str, hf: str, fused: bool) -> Iterator[Weight]:
    hidden, width, count = model.hidden_size, model.intermediate_size, model.num_experts or 0
    yield from _attention(model, native, hf, fused, biases="qkvo")
    yield plain(f"{native}.attention.sinks", f"{hf}.self_attn.sinks", model.num_attention_heads)
    yield from _norms(model, native, hf)
    ours, theirs = f"{native}.moe", f"{hf}.mlp"
    inner = f"{ours}.routed_experts.inner_experts"
    yield from _router(model, layer, ours, f"{theirs}.router")
    yield plain(f"{ours}.router.gate.bias", f"{theirs}.router.bias", count)
    yield transposed_experts(f"{inner}.mlp1_weight_EGD", f"{theirs}.experts.gate_up_proj", count, 2 * width, hidden)
    yield plain(f"{inner}.mlp1_bias_EG", f"{theirs}.experts.gate_up_proj_bias", count, 2 * width, start="zeros")
    yield transposed_experts(f"{inner}.mlp2_weight_EDF", f"{theirs}.experts.down_proj", count, hidden, width)
    yield plain(f"{inner}.mlp2_bias_ED", f"{theirs}.experts.down_proj_bias", count, hidden, start="zeros")


LAYERS: dict[str, Callable[[Model, int, str, str, bool], Iterator[Weight]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3,
    "mixtral": _mixtral,
    "llama4_text": _llama4_text,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": _gpt_oss,
}


def _router(model: Model, layer: int, native: str, hf: str) -> Iterator[Weight]:
    """The matrix, and the bias that balances the load."""
    count = model.num_experts or 0
    yield plain(f"{native}.router.gate.weight", f"{hf}.weight", count, model.hidden_size)
    if model.model_type == "deepseek_v3":
        yield plain(f"{native}.expert_bias_E", f"{hf}.e_score_correction_bias", count, optional=True)
    else:
        yield absent(f"{native}.expert_bias_E", balancing_bias(layer), count)


def _mixture(
    model: Model, layer: int, native: str, hf: str, projections: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
) -> Iterator[Weight]:
    """Experts of three matrices each, and those that every token passes through. projections: their names there."""
    hidden, width, count = model.hidden_size, expert_width(model), model.num_experts or 0
    gate, up, down = (f"{hf}.experts.{{}}.{name}.weight" for name in projections)
    inner = f"{native}.routed_experts.inner_experts"
    yield from _router(model, layer, native, f"{hf}.gate")
    yield experts(f"{inner}.w1_EFD", gate, count, width, hidden)
    yield experts(f"{inner}.w3_EFD", up, count, width, hidden)
    yield experts(f"{inner}.w2_EDF", down, count, hidden, width)
    shared = width * shared_experts(model)
    if shared:
        yield from _feed_forward(f"{native}.shared_experts", f"{hf}.shared_experts", hidden, shared)


def _heads(model: Model) -> tuple[int, int, int]:
    """Query heads, key/value heads, width of a head."""
    heads = model.num_attention_heads
    return heads, model.num_key_value_heads or heads, model.head_dim or model.hidden_size // heads


def _attention(
    model: Model, native: str, hf: str, fused: bool, *, pairs: bool = False, biases: Literal["", "qkv", "qkvo"] = ""
) -> Iterator[Weight]:
    """Grouped-query attention. pairs: the native rotary embedding turns neighbouring rows, Hugging Face's does not.
    biases: the projections that have one."""
    heads, kv_heads, head_dim = _heads(model)
    hidden = model.hidden_size
    ours, theirs = f"{native}.attention.qkv_linear", f"{hf}.self_attn"
    parts = {"q": heads, "k": kv_heads, "v": kv_heads}
    for kind in ("weight", "bias") if biases else ("weight",):
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
    if "o" in biases:
        yield plain(f"{native}.attention.wo.bias", f"{theirs}.o_proj.bias", hidden)


def _feed_forward(native: str, hf: str, hidden: int, width: int) -> Iterator[Weight]:
    yield plain(f"{native}.w1.weight", f"{hf}.gate_proj.weight", width, hidden)
    yield plain(f"{native}.w3.weight", f"{hf}.up_proj.weight", width, hidden)
    yield plain(f"{native}.w2.weight", f"{hf}.down_proj.weight", hidden, width)


def _norms(model: Model, native: str, hf: str) -> Iterator[Weight]:
    yield norm(f"{native}.attention_norm.weight", f"{hf}.input_layernorm.weight", model.hidden_size)
    yield norm(f"{native}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", model.hidden_size)
