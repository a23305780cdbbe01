"""Experiments and topologies for planning with Megatron, without data or processes."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import LLAMA

from primus.backends.megatron.translate import native_config
from primus.config.experiment import Experiment
from primus.errors import PlanError
from primus.plan.plan import PlannedData, Topology

DATA = PlannedData(kind="synthetic", digest="0")
GPU = {"name": "MI300X", "device": "rocm", "peak_tflops": {"bf16": 1307.4}}
AXES = ("data_replicate", "data_shard", "tensor", "pipeline", "context")


def experiment(**overrides: Any) -> Experiment:
    """A tiny Llama in fp32 on a CPU; `overrides` are keys with ``__`` for the dot."""
    tree: dict[str, Any] = {
        "name": "t",
        "backend": "megatron",
        "hardware": {"name": "cpu", "device": "cpu"},
        "model": LLAMA,
        "data": {"train": "synthetic"},
        "train": {"steps": 10, "global_batch_size": 8, "seq_length": 64},
        "optimizer": {"lr": 1.0e-3},
        "precision": "fp32",
    }
    for key, value in overrides.items():
        *sections, name = key.split("__")
        place = tree
        for section in sections:
            place[section] = dict(place.get(section, {}))
            place = place[section]
        place[name] = value
    return Experiment.model_validate(tree)


def topology(**sizes: int) -> Topology:
    given = {**dict.fromkeys((*AXES, "expert"), 1), "micro_batch_size": 1, **sizes}
    world = 1
    for axis in AXES:
        world *= given[axis]
    given.setdefault("microbatches", 8 // (given["data_shard"] * given["data_replicate"]))
    return Topology(nnodes=1, nproc_per_node=world, **given)


def plan(sizes: dict[str, int] | None = None, *, data: PlannedData = DATA, **overrides: Any) -> dict[str, Any]:
    """The native configuration. Axes in `sizes` are set in the experiment too."""
    asked = {f"parallel__{axis}": size for axis, size in (sizes or {}).items() if axis in (*AXES, "expert")}
    return native_config(experiment(**asked, **overrides), topology(**(sizes or {})), data)


def refused(sizes: dict[str, int] | None = None, **overrides: Any) -> dict[str, str]:
    """Key -> message and remedy of everything that is refused."""
    with pytest.raises(PlanError) as caught:
        plan(sizes, **overrides)
    return {problem.where: f"{problem.message} ({problem.remedy})" for problem in caught.value.problems}


def own(**keys: Any) -> dict[str, Any]:
    """Native keys, ``__`` for the dot, as they lie in an experiment."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        section, _, name = key.partition("__")
        sections.setdefault(section, {})[name] = value
    return {"megatron": sections}
