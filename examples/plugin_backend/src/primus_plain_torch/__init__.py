"""A Primus backend in plain PyTorch: what it can do, and how an experiment becomes its own configuration.

Planning imports no torch; ``train`` does, in the worker process.
"""

from __future__ import annotations

from typing import Literal

from primus.backends.base import Capabilities, NativeConfig, NativeKey, NativeSchema, Result, Session
from primus.config.experiment import Experiment
from primus.errors import PlanError, Problem
from primus.plan.plan import Patch, Plan, PlannedData, Topology

VERSION = "0.1.0"


class PlainTorchBackend:
    """Pre-trains Llama in fp32 on one CPU process."""

    name = "plain_torch"
    environment = "torch"
    processes: Literal["torchrun", "plain"] = "plain"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=frozenset({"llama"}),
            parallel_axes=frozenset(),
            precisions={"cpu": frozenset({"fp32"})},
            unsupported={
                "recompute": "it keeps every activation",
                "compile": "it runs eagerly",
                "profile": "it has no profiler",
                "model.rope_scaling": "it has plain rotary embeddings only",
                "data.document_attention": "its attention does not stop at documents",
            },
        )

    def native_schema(self) -> NativeSchema:
        keys = {"threads": NativeKey("int", 1, description="Threads of one operation.")}
        return NativeSchema({"primus-plain-torch": VERSION}, keys)

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        problems = []
        if topology.world_size != 1:
            problems.append(Problem("parallel", f"{self.name} runs in one process, not {topology.world_size}"))
        if experiment.model.init != "random":
            problems.append(Problem("model.init", f"{self.name} starts from random weights only", "model.init: random"))
        if experiment.checkpoint.async_:
            problems.append(
                Problem("checkpoint.async", f"{self.name} saves while training waits", "checkpoint: {async: false}")
            )
        if problems:
            raise PlanError(problems=problems)
        return {"threads": experiment.native.get(self.name, {}).get("threads", 1)}, {}, ()

    def run(self, plan: Plan, session: Session) -> Result:
        from primus_plain_torch.train import Trainer

        return Trainer(plan, session).run()
