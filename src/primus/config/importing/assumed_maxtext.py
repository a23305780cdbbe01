"""What MaxText does where the file says nothing, and we would do otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.importing import mesh_maxtext as mesh
from primus.config.importing import model_maxtext as model
from primus.config.importing import values_maxtext as m
from primus.config.importing.assumed import Assumed
from primus.config.importing.rules import Convert, Others, Put, numeric

_NONE = {"model.n_group": 1, "model.topk_group": 1}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_30b_a3b": {"model.rope_theta": 10_000_000.0},
    "qwen3_235b_a22b": {"model.rope_theta": 5_000_000.0},
    "qwen2.5_14b": {"model.rms_norm_eps": 1e-6},
    "mixtral_8x22b": {"model.vocab_size": 32768},
    "deepseek2_236b": _NONE,
    "deepseek3_671b": _NONE,
}
"""MaxText's models that are not quite the published ones, which our presets are."""

DIMENSIONS: dict[str, Any] = {
    "model.hidden_size": 2048,
    "model.num_hidden_layers": 16,
    "model.num_attention_heads": 16,
    "model.num_key_value_heads": 16,
    "model.head_dim": 128,
    "model.intermediate_size": 7168,
    "model.vocab_size": 32000,
}
"""MaxText's model where neither a name nor a dimension is given."""


def maxtext(others: Others) -> Iterator[Assumed]:
    if not m.from_defaults(others):
        return

    def default(target: str, name: str) -> Assumed:
        return Assumed(target, m.effective(others, name), _note(others, name))

    yield default("train.steps", "steps")
    yield default("train.seq_length", "max_target_length")
    yield default("optimizer.lr", "learning_rate")
    for name, convert in (
        ("learning_rate_final_fraction", m.final_fraction),
        ("warmup_steps_fraction", m.warmup),
        ("wsd_decay_steps_fraction", m.wsd_fraction),
        ("per_device_batch_size", mesh.batch),
    ):
        outcome = _outcome(convert, others, name)
        for target, value in outcome.values.items():
            yield Assumed(target, value, f"{_note(others, name)}, {outcome.note}")
    pieces = mesh.chunks(others) if (mesh.size(others, "pipeline") or 1) > 1 else None
    if pieces and others.get("num_pipeline_repeats", -1) == -1:
        yield Assumed("parallel.virtual_pipeline", pieces, _note(others, "num_layers_per_pipeline_stage"))
    if "remat_policy" not in others:
        yield Assumed("recompute", "full", _note(others, "remat_policy"))
    if "dataset_type" not in others:
        yield Assumed("data.train", "synthetic", _note(others, "dataset_type"))
    if not m.synthetic(others) and "packing" not in others:
        yield Assumed("data.document_attention", "within", _note(others, "packing"))
    if m.effective(others, "enable_checkpointing") is True:
        yield default("checkpoint.interval", "checkpoint_period")
    yield default("monitor.log_interval", "log_period")
    if model.has_experts(others):
        for target, value in _outcome(model.balance, others, "load_balance_loss_weight").values.items():
            yield Assumed(target, value, _note(others, "load_balance_loss_weight"))
    if others.plain and "attention" not in others and mesh.size(others, "context") == 1:
        yield default("maxtext.attention", "attention")
    yield from _model(others)


def _outcome(convert: Convert, others: Others, name: str) -> Put:
    """What the value of `name`, the file's or the default, becomes; nothing for what cannot be carried."""
    try:
        found = convert(m.effective(others, name), others)
    except ArithmeticError:
        return Put({})
    return found if isinstance(found, Put) else Put({})


def _note(others: Others, name: str) -> str:
    owner = "MaxText" if others.plain or name not in m.PRESET else "the presets below it"
    return f"not set there: default of {owner}"


def _model(others: Others) -> Iterator[Assumed]:
    if others.preset:
        for target, value in MODELS.get(_form(others.preset), {}).items():
            yield Assumed(target, value, "not set there: its model of this name has it so")
    elif others.plain:
        note = _note(others, "model_name")
        yield Assumed("model.model_type", model.family(others), note)
        yield from (Assumed(target, value, note) for target, value in DIMENSIONS.items())
        longest = others.get("max_target_length", m.DEFAULTS["max_target_length"])
        yield Assumed("model.max_position_embeddings", longest, "as long as the sequences")


def _form(name: str) -> str:
    return name.lower().removesuffix(".yaml").removesuffix(".yml").replace("-", "_")


def differences(others: Others) -> Iterator[str]:
    """What MaxText does that has no counterpart here, and that the file does not change."""
    if not m.from_defaults(others):
        yield "what the file that it starts from says, and MaxText's defaults beneath it, is not taken over"
        return
    length, steps = m.schedule_steps(others), m.effective(others, "steps")
    if any(_outcome(m.warmup, others, "warmup_steps_fraction").values.values()):
        yield "the warm-up begins at rate 0 there: here each of its steps has the rate of the next one there"
    if length and numeric(steps) and length < steps:
        yield f"after step {length} the rate is 0 there, here optimizer.min_lr"
    if "adamw_mask" not in others:
        yield "norms and biases decay there as well, here weights with two or more dimensions only"
    if "weight_dtype" not in others and not others.plain:
        yield "weights and moments are bfloat16 there by its presets, here fp32"
    if "attention" not in others and not others.plain:
        yield "attention is cuDNN's there by its presets, here maxtext.attention: dot_product"
    if model.has_experts(others) and "capacity_factor" not in others and not others.plain:
        yield "an expert drops tokens beyond 1.25 of an even load there by its presets, here it takes all"
    if (model.architecture(others.preset).get("model_type") or model.family(others)) in ("llama", "mixtral"):
        yield "the weight of the queries holds the scale of the scores there and learns at another pace for it"
    if _form(others.preset).startswith("llama3.3"):
        yield "MaxText does not scale the rotary embedding of llama3.3, whose preset here does, as published"
