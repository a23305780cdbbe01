"""Where the supported versions of megatron.core differ. Nothing else in this package asks for a version."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache, partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

PACKAGE = "megatron-core"
MODULES = (
    "distributed",
    "models.gpt.gpt_layer_specs",
    "models.gpt.gpt_model",
    "num_microbatches_calculator",
    "optimizer",
    "parallel_state",
    "pipeline_parallel",
    "tensor_parallel",
    "transformer.moe.moe_layer",
    "transformer.moe.moe_utils",
    "transformer.multi_latent_attention",
    "transformer.multi_token_prediction",
    "transformer.torch_norm",
    "transformer.transformer_block",
    "transformer.transformer_config",
)
"""All of megatron.core that this package uses, under its own name."""


@cache
def version() -> tuple[int, ...]:
    """Of the installed megatron-core; empty when there is none."""
    try:
        return tuple(int(part) for part in re.findall(r"\d+", installed_version(PACKAGE))[:3])
    except PackageNotFoundError:
        return ()


def import_everything() -> None:
    for name in MODULES:
        importlib.import_module(f"megatron.core.{name}")


def mixture_submodules(mlp: Any) -> Any:
    """The parts of a mixture layer inside a layer's spec. From 0.18 the spec is a partially applied class."""
    return mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules


def known_arguments(function: Any, **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that `function` takes: what one version has no name for is what it always does."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def gradients_for_norm(part: Any) -> list[Any]:
    """Of one of Megatron's optimizers, the gradients that belong to this rank's share of the norm."""
    current = getattr(part, "get_grads_for_grad_norm", None)  # from 0.18
    found: list[Any] = current() if current else part.get_main_grads_for_grad_norm()
    return found
