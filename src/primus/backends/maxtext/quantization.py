"""Products of eight-bit factors: what MaxText is given for them, and what does not go with them. Light: no jax.

MaxText quantizes in two ways. Qwix, the newer, computes scales anew from the factors of each product, so that a step
leaves nothing behind but weights and moments. The older keeps histories of scales beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.experiment import Experiment
from primus.errors import Problem
from primus.plan.plan import Topology

EIGHT_BIT_FLOATS = "fp8_full"
"""E4M3 for weights and activations, E5M2 for gradients, in the formats of the Open Compute Project."""
OTHER_FORMATS = ("MI300", "MI325")
"""How devices are called whose eight-bit floats have no negative zero; they do not compute the formats above."""


def native(experiment: Experiment) -> dict[str, Any]:
    """MaxText's keys; none where nothing is quantized."""
    kind = _kind(experiment)
    if not kind:
        return {}
    return {
        "quantization": kind,
        "use_qwix_quantization": True,
        "quantize_router_proj": False,  # the router computes in fp32
        "quantization_local_shard_count": 1,  # else the scales would depend on how many devices a node has
    }


def problems(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    own, device = experiment.native.get("maxtext", {}), experiment.hardware.device
    kind, given = _kind(experiment), "maxtext.quantization" if "quantization" in own else "precision"
    if given != "precision" and (experiment.precision == "fp8" or (kind == EIGHT_BIT_FLOATS and device != "cpu")):
        message = "precision: fp8 says it" if kind == EIGHT_BIT_FLOATS else f"precision says fp8, and this {kind}"
        remedy = "precision: fp8 alone" if kind == EIGHT_BIT_FLOATS else "precision: bf16, or remove it"
        yield Problem(given, message, remedy)
        return
    if experiment.precision == "fp8":
        yield from _formats(experiment)
    if not kind:
        return
    if kind == "int8" and experiment.model.num_experts:
        message = "MaxText leaves the experts, most of a mixture, as they are with int8"
        yield Problem(given, message, "precision: fp8, which takes experts too" if device != "cpu" else "remove it")
    if topology.expert > 1:
        message = "eight-bit products of experts that are spread over devices have not been verified"
        yield Problem("parallel.expert", message, "parallel.expert: 1, or precision: bf16")
    for key, wrong, why in (
        ("pipeline_fsdp_ag_per_repeat", True, "MaxText's pipelines that fetch weights ahead do not quantize them"),
        ("sparse_matmul", False, "MaxText quantizes the product of ragged groups only, not that of all tokens"),
        ("use_sliced_mla_proj", True, "MaxText does not quantize parts of a matrix"),
    ):
        if own.get(key) is wrong:
            yield Problem(f"maxtext.{key}", why, f"remove it, or {given}")


def _kind(experiment: Experiment) -> str:
    otherwise = EIGHT_BIT_FLOATS if experiment.precision == "fp8" else ""
    kind: str = experiment.native.get("maxtext", {}).get("quantization", otherwise)
    return kind


def _formats(experiment: Experiment) -> Iterator[Problem]:
    hardware = experiment.hardware
    if hardware.peak_tflops and "fp8" not in hardware.peak_tflops:
        yield Problem("precision", f"{hardware.name} has no fp8 arithmetic", "bf16")
    elif hardware.device == "rocm" and hardware.name.upper().startswith(OTHER_FORMATS):
        message = (
            f"{hardware.name} computes other formats of fp8 than MaxText's quantization by present scales has; "
            "the kind that has them, nanoo_fp8, keeps histories of scales, and cannot accumulate gradients"
        )
        yield Problem("precision", message, "bf16, or backend: torchtitan")
