"""The architecture in MaxText's words -> ours."""

from __future__ import annotations

from functools import cache
from typing import Any

from primus.config.document import parse
from primus.config.importing import names
from primus.config.importing.rules import Convert, Drop, Idle, Others, Outcome, Put, Same, numeric, truth
from primus.config.presets import read_text, root
from primus.config.source import Source


def scaled(target: str, early: int = 2) -> Convert:
    """A dimension under ``global_parameter_scale``: three powers of two double every one; heads and feed-forward layers
    with the first (early 2), the width with the second (1), layers with the third (0)."""

    def convert(value: Any, others: Others) -> Outcome:
        scale = others.get("global_parameter_scale", 1)
        if scale == 1:
            return Put({target: value}, verbatim=True)
        if not (isinstance(scale, int) and scale > 1 and scale & (scale - 1) == 0 and numeric(value)):
            return Drop("global_parameter_scale is no power of two", f"set {target}")
        return Put(
            {target: value << (scale.bit_length() - 1 + early) // 3}, f"{value} at global_parameter_scale {scale}"
        )

    return convert


def family(others: Others) -> str | None:
    """model.model_type of the layers that the file names; None for a family that is not here."""
    name = str(others.get("decoder_block", "llama2"))
    if name == "deepseek":
        sigmoid = others.get("routed_score_func") == "sigmoid" or others.on("routed_bias")
        return "deepseek_v3" if sigmoid else "deepseek_v2"
    same = {"llama2": "llama", "default": "llama"}
    ours = ("qwen2", "qwen3", "qwen3_moe", "mixtral", "gpt_oss")
    return same.get(name, name if name in ours else None)


def block(value: Any, others: Others) -> Outcome:
    kind = family(others)
    if kind is None:
        return Drop(f"{value} is a model family that is not here")
    return Same("the preset says it") if others.preset else Put({"model.model_type": kind})


def of_family(*kinds: str) -> Convert:
    """A switch that is on in these families, and off in all others."""

    def convert(value: Any, others: Others) -> Outcome:
        if others.preset or truth(value) is (family(others) in kinds):
            return Same("the model family's: model.model_type")
        return Drop("the model family's: model.model_type")

    return convert


def has_experts(others: Others) -> bool:
    held = architecture(others.preset).get("num_experts", 1)
    return bool(others.number("num_experts", default=held) != 1)


@cache
def architecture(model: str) -> dict[str, Any]:
    """The `model` section of the preset behind the name of another system; empty when there is none."""
    found: dict[str, Any] = {}
    chain = [names.model(model).preset]
    while chain:
        preset = chain.pop()
        if preset is None:
            continue
        path = root() / f"{preset}.yaml"
        tree = parse(read_text(path, str(path)), Source("preset", preset, str(path)))
        plain = tree.plain() if tree else {}
        found = plain.get("model", {}) | found
        below = plain.get("extends", [])
        chain += [below] if isinstance(below, str) else below
    return found


def rope(value: Any, others: Others) -> Outcome:
    if value == "default":
        return Same("not scaled, or as the preset says")
    if value == "llama3.1":
        bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        scaling: dict[str, Any] = {"rope_type": "llama3", "factor": 8.0, **bounds}
        return Put({f"model.rope_scaling.{name}": item for name, item in scaling.items()}, "as MaxText has it fixed")
    return Put({"model.rope_scaling.rope_type": value}, verbatim=True)


def yarn(others: Others) -> bool:
    return bool(others.get("rope_type") == "yarn")


def balance(value: Any, others: Others) -> Outcome:
    if value == 0:
        return Put({"moe.balance": "bias" if others.on("routed_bias") else "none"})
    return Put({"moe.balance": "aux_loss", "moe.aux_loss_coeff": value})


def positive(target: str) -> Convert:
    """-1, 0 and nothing switch it off there."""
    return lambda value, others: Idle("off") if value in (-1, 0, "") else Put({target: value}, verbatim=True)
