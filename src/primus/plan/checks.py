"""What must hold between keys of an experiment, whatever engine runs it."""

from __future__ import annotations

from primus.config.experiment import Experiment
from primus.errors import Problem
from primus.plan.model_size import key_value_heads
from primus.plan.plan import Topology
from primus.plan.topology import Where, alternatives


def experiment_problems(experiment: Experiment, topology: Topology | None, where: Where) -> list[Problem]:
    model, train = experiment.model, experiment.train
    problems = []
    if train.seq_length > model.max_position_embeddings:
        problems.append(
            Problem(
                where("train.seq_length"),
                f"train.seq_length: {train.seq_length} is more than the model allows, {model.max_position_embeddings}",
                f"train.seq_length: {model.max_position_embeddings} at most",
            )
        )
    if model.num_attention_heads % experiment.parallel.tensor or key_value_heads(model) % experiment.parallel.tensor:
        problems.append(
            Problem(
                where("parallel.tensor"),
                f"parallel.tensor: {experiment.parallel.tensor} does not divide {model.num_attention_heads} heads and "
                f"{key_value_heads(model)} key/value heads",
                f"parallel.tensor: {alternatives(experiment.parallel.tensor, key_value_heads(model))}",
            )
        )
    return problems
