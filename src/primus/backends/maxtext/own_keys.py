"""What MaxText's own keys must be beyond their types, so that a mistake shows while planning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.backends.maxtext.mesh import device_samples
from primus.backends.maxtext.schema import schema
from primus.config.experiment import Experiment
from primus.config.suggest import closest
from primus.errors import Problem
from primus.plan.plan import Topology

PIPELINE = (
    "pipeline_delay_activation_forwarding",
    "pipeline_fsdp_ag_once",
    "pipeline_fsdp_ag_per_repeat",
    "scan_pipeline_iterations",
    "set_remat_policy_on_pipeline_iterations",
)
RULES = ("logical_axis_rules", "logical_axis_rules_for_eval")


def own_key_problems(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """Numbers that do not divide, and names of dimensions and axes that MaxText would not find."""
    own = experiment.native.get("maxtext", {})
    tiles, tokens = own.get("num_vocab_tiling"), device_samples(topology) * experiment.train.seq_length
    if tiles is not None and (tiles < 1 or tokens % tiles):
        message = f"{tiles} does not divide the {tokens:g} tokens that a device has at a time"
        yield Problem("maxtext.num_vocab_tiling", message, "a divisor")
    yield from _pipeline(experiment, own, topology)
    for key in RULES:
        for rule in own.get(key, []):
            yield from _rule(f"maxtext.{key}", rule)
    for name in experiment.env:
        if name.startswith("M_") and name[2:].lower() in {*schema().keys, *schema().omitted}:
            message = f"MaxText's settings have no effect as variables of the environment: {name}"
            yield Problem(f"env.{name}", message, "the portable key, or one below maxtext:")
    for name in own.get("input_data_sharding_logical_axes", []):
        yield from _known("maxtext.input_data_sharding_logical_axes", "dimension", name, _dimensions())


def _rule(key: str, rule: Any) -> Iterator[Problem]:
    axes = rule[1] if isinstance(rule, list) and len(rule) == 2 else None
    axes = [axes] if isinstance(axes, str) else axes
    if not isinstance(axes, list) or not isinstance(rule[0], str):
        yield Problem(key, f"{rule!r} is no rule", "pairs of a dimension and its axes: [[embed, [fsdp]]]")
        return
    yield from _known(key, "dimension", rule[0], _dimensions())
    for axis in axes:
        yield from _known(key, "axis of the mesh", axis, schema().omitted["mesh_axes"].default)


def _known(key: str, kind: str, name: Any, known: list[str]) -> Iterator[Problem]:
    if name not in known:
        near = closest(str(name), known)
        yield Problem(key, f"MaxText has no {kind} '{name}'", f"did you mean {near}?" if near else ", ".join(known))


def _dimensions() -> list[str]:
    return list(schema().keys[RULES[0]].choices)


def _pipeline(experiment: Experiment, own: dict[str, Any], topology: Topology) -> Iterator[Problem]:
    stages, delayed, each = topology.pipeline, "pipeline_delay_activation_forwarding", "pipeline_fsdp_ag_per_repeat"
    for key in PIPELINE:
        if key in own and stages == 1:
            yield Problem(
                f"maxtext.{key}", "it counts in a pipeline only", "remove it, or parallel.pipeline: 2 or more"
            )
            return
    if own.get(delayed) and topology.microbatches < 2 * stages:
        message = f"it needs {2 * stages} microbatches, two for each stage, and there are {topology.microbatches}"
        yield Problem(f"maxtext.{delayed}", message, "a larger train.global_batch_size, or remove it")
    if own.get(each):
        virtual = experiment.parallel.virtual_pipeline
        layers = experiment.model.num_hidden_layers
        if virtual == 1 or layers != stages * virtual or own.get(delayed):
            message = "it needs virtual stages of one layer each, without delay"
            remedy = f"parallel.virtual_pipeline: {layers // stages}, or remove it" if layers > stages else "remove it"
            yield Problem(f"maxtext.{each}", message, remedy)
