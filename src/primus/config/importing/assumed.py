"""What the other engines do where a file says nothing, and we would do otherwise: written out, with a comment.

Facts: the defaults of Megatron's argument parser and of TorchTitan's job configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from primus.config.importing.rules import Others
from primus.config.importing.values import SPLIT, evaluated, share
from primus.config.keys import choices, keys


class Assumed(NamedTuple):
    """A key that the file does not set, and why it has this value."""

    target: str
    value: Any
    note: str


def megatron(others: Others, taken: Collection[str]) -> Iterator[Assumed]:
    """taken: keys that the file has set. The reference system's module preset sets a precision itself."""
    note = "not set there: Megatron's default"
    yield Assumed("optimizer.betas", [0.9, 0.999], note)
    yield Assumed("optimizer.weight_decay", 0.01, note)
    yield Assumed("optimizer.schedule.name", "linear", note)
    if others.plain and not others.on("fp16"):
        yield Assumed("precision", "fp32", note)
    if evaluated(others):
        if "data_path" in others:
            yield Assumed("data.validation", share(SPLIT), f"{note}, split {SPLIT}")
        yield Assumed("eval.interval", 1000, note)
        yield Assumed("eval.steps", 100, note)
    if "model.hidden_size" in taken and not others.preset:
        yield from _architecture(others, note)


def _architecture(others: Others, note: str) -> Iterator[Assumed]:
    """Of a model that the file spells out."""
    kind, why = model_type(others)
    if kind:
        yield Assumed("model.model_type", kind, why)
    yield Assumed("model.tie_word_embeddings", True, note)
    hidden = others.number("hidden_size")
    if hidden:
        gated = others.on("swiglu")
        width = int(4 * hidden * 2 / 3 / 64) * 64 if gated else int(4 * hidden)
        yield Assumed("model.intermediate_size", width, f"{note} from hidden_size")


def model_type(others: Others) -> tuple[str | None, str]:
    """The family that the arguments describe, and from what it follows; or None and what speaks against each."""
    if others.get("normalization") != "RMSNorm" and not others.on("multi_latent_attention"):
        return None, "norms are LayerNorm (there is no `normalization: RMSNorm`), which no family here has"
    if not (others.on("swiglu") or others.get("activation_func") == "swiglu"):
        return None, "the feed-forward layers are not SwiGLU, as every family's here are"
    kind, why = "llama", "RMSNorm and SwiGLU"
    if others.on("multi_latent_attention"):
        kind, why = "deepseek_v3", "multi_latent_attention"
    elif others.on("use_sink_attention") or others.get("softmax_type") == "learnable":
        kind, why = "gpt_oss", "attention sinks"
    elif others.on("qk_layernorm"):
        kind, why = "qwen3", "qk_layernorm"
    elif "num_experts" in others:
        kind, why = "mixtral", "num_experts"
    elif others.on("add_qkv_bias"):
        kind, why = "qwen2", "add_qkv_bias"
    if kind not in choices(keys()["model.model_type"].field.annotation):
        return None, f"{why} makes it {kind}, a family that is not here"
    return kind, f"from {why}"


def differences(others: Others) -> Iterator[str]:
    """Defaults of Megatron's that have no counterpart here."""
    for name in ("hidden_dropout", "attention_dropout"):
        if name not in others:
            yield f"{name} is not set: Megatron's default is 0.1, here there is no dropout"


def torchtitan(others: Others) -> Iterator[Assumed]:
    note = "not set there: TorchTitan's default"
    yield Assumed("optimizer.lr", 8e-4, note)
    yield Assumed("optimizer.schedule.warmup_steps", 200, note)
    yield Assumed("optimizer.schedule.name", "linear", note)
    yield Assumed("train.micro_batch_size", 8, note)
    yield Assumed("train.seq_length", 2048, note)
    yield Assumed("train.steps", 10000, note)
    yield Assumed("recompute", "selective", note)
    if others.on("checkpoint.enable"):
        yield Assumed("checkpoint.interval", 500, note)
        yield Assumed("checkpoint.keep", 10, note)


def global_batch(placed: dict[str, Any], devices: int) -> Assumed | None:
    """Both engines' default: micro batch size times data-parallel ranks, here those of one node of `devices`."""
    sizes = [placed.get(f"parallel.{axis}", 1) for axis in ("tensor", "pipeline", "context")]
    micro = placed.get("train.micro_batch_size", 1)
    if not all(isinstance(size, int) and size > 0 for size in (*sizes, micro)):
        return None
    ranks, rest = divmod(devices, sizes[0] * sizes[1] * sizes[2])
    if rest or not ranks:
        return None
    note = f"not set there: micro_batch_size x {ranks} data-parallel ranks of one node"
    return Assumed("train.global_batch_size", micro * ranks, note)
