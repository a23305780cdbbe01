"""TorchTitan models of any dimensions, from the portable ``model`` section."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from primus.config.experiment import Model, Moe, Precision
from primus.errors import PlanError


def build_model_spec(
    model: Model,
    *,
    seq_length: int,
    document_attention: Literal["full", "within"] = "full",
    precision: Precision = "bf16",
    moe: Moe | None = None,
    context: int = 1,
    device: Literal["cpu", "cuda", "rocm"] = "cpu",
    float8: Mapping[str, Any] | None = None,
) -> Any:
    """A ``torchtitan.protocols.model_spec.ModelSpec`` of exactly these dimensions.

    seq_length: tokens a sequence; sizes the rotary caches. context: context-parallel ranks; together with
    `document_attention` and `device` it decides between plain causal attention and a block mask (see
    ``limits.attention_backend``). precision ``fp32`` also keeps the experts of a mixture in fp32, ``fp8`` converts
    the linear layers, with the options `float8`. With ``model.init`` other than ``native`` the parameters are left
    uninitialised: the caller fills them with ``start.random_start``, ``start.load_huggingface`` or a checkpoint.

    Raises PlanError with one problem for each key that the family cannot honour.
    """
    from primus.backends.torchtitan.models import limits
    from primus.backends.torchtitan.models.parts import Parts, convert_fp8

    moe = moe or Moe()
    problems = limits.problems(model, moe=moe)
    if problems:
        raise PlanError(problems=problems)
    attention = limits.attention_backend(model, document_attention, context, device)
    parts = Parts(model=model, moe=moe, seq_length=seq_length, attention=attention, full_precision=precision == "fp32")
    spec = _family(model).spec(parts)
    if precision == "fp8":
        convert_fp8(spec, float8 or {})
    return spec


def _family(model: Model) -> Any:
    return import_module(f"{__name__}.{model.model_type}")
