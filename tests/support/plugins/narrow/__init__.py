"""A backend that can do little: the planner has to say so before anything starts."""

from __future__ import annotations

from typing import Literal

from primus.backends.base import Capabilities, NativeConfig, NativeSchema, Result, Session
from primus.config.experiment import Experiment
from primus.errors import TrainingError
from primus.plan.plan import Patch, Plan, PlannedData, Topology


class NarrowBackend:
    name = "narrow"
    environment = "launcher"
    processes: Literal["torchrun", "plain"] = "plain"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=frozenset({"qwen3"}),
            parallel_axes=frozenset({"data_replicate"}),
            precisions={"cuda": frozenset({"bf16"})},
            unsupported={
                "compile": "it has no compiler",
                "recompute=full": "it keeps everything",
                "checkpoint.async": "it waits",
                "data.mask_eod": "it cannot mask",
            },
        )

    def native_schema(self) -> NativeSchema:
        return NativeSchema({"narrow": "1"}, {})

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        return {}, {"FROM_BACKEND": "1", "BOTH": "backend"}, ()

    def run(self, plan: Plan, session: Session) -> Result:
        raise TrainingError("narrow plans and does not train")
