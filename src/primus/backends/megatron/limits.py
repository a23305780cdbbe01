"""What this backend cannot do, known without importing Megatron.

Contradictions within an experiment, and between it and the machine, are found before, for any engine; those between
keys of Megatron's own by ``native_limits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, lcm
from typing import Any

from primus.backends.megatron import native_limits, split
from primus.backends.megatron.split import either
from primus.config.dimensions import expert_width, shared_experts
from primus.config.experiment import Experiment
from primus.errors import Problem
from primus.plan.plan import PlannedData, Topology

SPLITS = split.KEYS


def problems(experiment: Experiment, topology: Topology, data: PlannedData, own: dict[str, Any]) -> list[Problem]:
    """Everything in `experiment` that Megatron cannot do as asked, each with the key's name."""
    return [
        *_cuts(experiment, topology),
        *_sequence(experiment, topology),
        *_rounds(experiment, topology, own),
        *_llama4(experiment, data),
        *native_limits.problems(experiment, topology, own),
    ]


def _cuts(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """What tensor parallelism cuts beside heads and dense feed-forwards."""
    model, tensor = experiment.model, topology.tensor
    if model.vocab_size % tensor:
        yield Problem(
            "parallel.tensor",
            f"megatron: {tensor} ranks do not divide the {model.vocab_size} rows of the embedding",
            "another parallel.tensor; padding the vocabulary would change the loss",
        )
    if not model.num_experts:
        return
    widths = {"shared experts": shared_experts(model) * expert_width(model)}
    if topology.expert == 1:  # else experts are spread whole
        widths["experts"] = expert_width(model)
    for what, width in widths.items():
        if width % tensor:
            remedy = f"parallel.tensor: {gcd(tensor, width)}"
            remedy += "; or parallel.expert: 2 or more, which leaves them whole" if what == "experts" else ""
            yield Problem("parallel.tensor", f"megatron: {tensor} ranks do not divide {what} of width {width}", remedy)
            return


def _sequence(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """With context parallelism a rank holds two chunks of each sequence, which tensor parallelism splits once more."""
    if topology.context == 1:
        return
    length, longest = experiment.train.seq_length, experiment.model.max_position_embeddings
    unit = topology.context * lcm(2, topology.tensor)
    if length % unit:
        fitting = [other for other in _around(length, unit) if other <= longest]
        axes = f"2 x context {topology.context}" + (f", and by tensor {topology.tensor}" if topology.tensor > 1 else "")
        yield Problem(
            "train.seq_length",
            f"{length} tokens do not divide by {unit} ({axes})",
            f"train.seq_length: {either(fitting)}" if fitting else "fewer ranks on these axes",
        )


def _rounds(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> Iterator[Problem]:
    """The interleaved schedule takes microbatches in rounds of one for each pipeline rank, unless told otherwise."""
    ranks, microbatches = topology.pipeline, topology.microbatches
    if experiment.parallel.virtual_pipeline == 1 or ranks == 1:
        return
    if own.get("transformer", {}).get("microbatch_group_size_per_vp_stage") and microbatches >= ranks:
        return
    if microbatches % ranks:
        each = topology.micro_batch_size * topology.data_parallel
        fitting = [each * rounds for rounds in _around(microbatches, ranks)]
        yield Problem(
            "train.global_batch_size",
            f"interleaved_1f1b works in rounds of {ranks} microbatches, and {microbatches} are not whole rounds",
            f"train.global_batch_size: {either(fitting)}; or another train.micro_batch_size",
        )


def _around(value: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `value` on either side, without 0."""
    below = value // unit * unit
    return [other for other in (below, below + unit) if other > 0]


def _llama4(experiment: Experiment, data: PlannedData) -> Iterator[Problem]:
    model = experiment.model
    if model.model_type != "llama4_text":
        return
    if model.num_experts and model.num_experts_per_tok != 1:
        yield Problem(
            "model.num_experts_per_tok",
            f"{model.num_experts_per_tok} experts a token, but Megatron weighs what goes into an expert only where "
            "there is one",
            "model.num_experts_per_tok: 1",
        )
    if data.document_attention == "within":
        yield Problem(
            "data.document_attention",
            "llama4_text counts its chunks of attention from the start of a sequence, not of a document",
            "data.document_attention: full",
        )
