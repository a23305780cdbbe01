"""What TorchTitan's models cannot do, known without importing them.

Contradictions within an experiment, and between it and the machine, are found before, for any engine.
"""

from __future__ import annotations

from typing import Literal

from primus.config.experiment import Model, Moe
from primus.config.families import FAMILIES, having, latent_attention
from primus.errors import Problem

ROPE_TYPES = {
    **dict.fromkeys(("llama", "llama4_text", "deepseek_v2", "deepseek_v3"), ("llama3", "yarn")),
    **dict.fromkeys(("qwen2", "qwen3", "qwen3_moe", "mixtral", "gpt_oss"), ("yarn",)),
}
"""Every family that is built here, and how its rotary embedding can be scaled. TorchTitan's embedding of halves has no
llama3 scaling."""
UNTIED = ("deepseek_v2", "deepseek_v3", "gpt_oss")


def attention_backend(
    model: Model,
    document_attention: Literal["full", "within"],
    context: int = 1,
    device: Literal["cpu", "cuda", "rocm"] = "cpu",
) -> Literal["sdpa", "flex"]:
    """``sdpa``: plain causal attention, no mask to build. ``flex``: a block mask from the positions (on a CPU replaced
    by masked attention).

    gpt_oss needs a mask for its windows and the log-sum-exp for its sinks, llama4_text a mask for its chunks; context
    parallelism is written for the mask; and the fused kernels behind ``sdpa`` want values as wide as keys, which
    multi-head latent attention does not have, so that on a GPU it would fall back to a quadratic score matrix.
    """
    if document_attention == "within" or context > 1 or model.model_type in ("gpt_oss", "llama4_text"):
        return "flex"
    if latent_attention(model.model_type) and device != "cpu":
        return "flex"
    return "sdpa"


def problems(model: Model, *, moe: Moe | None = None, pipeline: int = 1) -> list[Problem]:
    """Every reason why TorchTitan cannot train this model in this layout, each with the key's name."""
    if model.model_type not in ROPE_TYPES:
        return []  # no such family here, which the planner says
    family, found = model.model_type, _rope(model)
    if model.tie_word_embeddings and family in UNTIED:
        found.append(_problem("model.tie_word_embeddings", f"{family} does not tie its embeddings", "set it to false"))
    elif model.tie_word_embeddings and pipeline > 1:
        found.append(
            _problem(
                "parallel.pipeline",
                "a model with tied embeddings cannot be split into pipeline stages",
                "set parallel.pipeline=1 or model.tie_word_embeddings=false",
            )
        )
    if FAMILIES[family].mixture:
        found += _mixture(model, moe or Moe())
    elif model.num_experts is not None:
        others = " or ".join(name for name in having("num_experts") if name in ROPE_TYPES)
        found.append(_problem("model.num_experts", f"{family} is built dense", f"use {others}"))
    return found


def _problem(where: str, message: str, remedy: str = "") -> Problem:
    return Problem(where, f"torchtitan: {message}", remedy)


def _rope(model: Model) -> list[Problem]:
    scaling, family, here = model.rope_scaling, model.model_type, "model.rope_scaling"
    if scaling is None:
        return []
    if scaling.rope_type not in ROPE_TYPES[family]:
        legal = " or ".join(ROPE_TYPES[family])
        return [_problem(f"{here}.rope_type", f"{family} cannot be scaled by {scaling.rope_type}", f"use {legal}")]
    if family == "gpt_oss":
        return [
            _problem(f"{here}.{name}", f"gpt_oss derives {name} from the factor", "remove it")
            for name in ("mscale", "mscale_all_dim")
            if getattr(scaling, name) is not None
        ]
    return []


def _mixture(model: Model, moe: Moe) -> list[Problem]:
    found: list[Problem] = []
    if moe.balance == "aux_loss":
        found.append(_problem("moe.balance", "there is no auxiliary balance loss", "use bias or none"))
    if model.num_experts is None:
        found.append(_problem("model.num_experts", f"{model.model_type} is built with experts", "set it"))
    family = model.model_type
    if family == "gpt_oss" and model.sliding_window is None:
        found.append(_problem("model.sliding_window", "every other gpt_oss layer has a window", "set it, e.g. to 128"))
    if latent_attention(family) and not model.n_shared_experts:
        found.append(_problem("model.n_shared_experts", f"{family} has at least one shared expert", "set it to 1"))
    if family == "deepseek_v3" and (model.n_group or 1) > 1 and (model.num_experts or 0) // (model.n_group or 1) < 2:
        found.append(_problem("model.n_group", "a group's score is that of its best two experts", "fewer groups"))
    found += [
        _problem(f"model.{name}", f"{family} has no {name}", "remove it")
        for name in ("sliding_window", "swiglu_limit")
        if name not in FAMILIES[family].fields and getattr(model, name) is not None
    ]
    return found
