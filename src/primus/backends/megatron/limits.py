"""What this backend cannot do, known without importing Megatron.

Contradictions within an experiment, and between it and the machine, are found before, for any engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.experiment import Experiment
from primus.errors import Problem
from primus.plan.plan import PlannedData, Topology


def problems(experiment: Experiment, topology: Topology, data: PlannedData, own: dict[str, Any]) -> list[Problem]:
    """Everything in `experiment` that Megatron cannot do as asked, each with the key's name."""
    return [*_cuts(experiment, topology)]


def _cuts(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    model, tensor = experiment.model, topology.tensor
    if model.vocab_size % tensor:
        yield Problem(
            "parallel.tensor",
            f"megatron: {tensor} ranks do not divide the {model.vocab_size} rows of the embedding",
            "another parallel.tensor; padding the vocabulary would change the loss",
        )
