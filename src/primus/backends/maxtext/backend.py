"""What the MaxText backend offers, and how an experiment becomes its configuration. Light: no jax."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from primus.backends.base import Capabilities, NativeConfig, NativeSchema, Processes, Progress, Result, Session
from primus.config.experiment import Experiment
from primus.plan.plan import Patch, Plan, PlannedData, Topology

if TYPE_CHECKING:
    from primus.backends.base import Backend, Exchange

ENGINE = {"maxtext": "0.2.5", "jax": "0.11.1"}


class MaxTextBackend:
    """Pre-training with MaxText."""

    name = "maxtext"
    environment = "jax"
    processes: Processes = "per_node"

    def environment_on(self, device: str) -> str:
        return self.environment if device == "cpu" else f"{self.environment}-{device}"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=frozenset({"llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3"}),
            parallel_axes=frozenset({"data_shard", "data_replicate", "context", "tensor", "pipeline", "expert"}),
            precisions={
                "cpu": frozenset({"fp32", "bf16"}),
                "cuda": frozenset({"fp32", "bf16", "fp8"}),
                "rocm": frozenset({"fp32", "bf16", "fp8"}),
            },
            anomaly=frozenset({"skip_step", "rollback"}),
        )

    def native_schema(self) -> NativeSchema:
        from primus.backends.maxtext.schema import schema

        return schema()

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        from primus.backends.maxtext import patches
        from primus.backends.maxtext.translate import native_config

        device = experiment.hardware.device
        # said outright, a device that is missing is an error: JAX would fall back to the CPU
        env = {"DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu" if device == "cpu" else f"{device},cpu"}
        if experiment.precision == "fp32" and device != "cpu":  # else products of fp32 may be rounded to fewer bits
            env["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        return native_config(experiment, topology, data), env, patches.for_model(experiment.model)

    def run(self, plan: Plan, session: Session) -> Result:
        from primus.backends.maxtext.worker import run

        return run(plan, session)

    def export_weights(self, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        from primus.backends.maxtext.export import FORMAT

        FORMAT.export_weights(checkpoint, directory, dtype, progress)

    def export_state(self, checkpoint: Path, directory: Path, progress: Progress) -> None:
        from primus.backends.maxtext.export import FORMAT

        FORMAT.export_state(checkpoint, directory, progress)

    def import_state(self, directory: Path, checkpoint: Path, progress: Progress) -> None:
        from primus.backends.maxtext import export

        export.import_state(self.name, directory, checkpoint, progress)


if TYPE_CHECKING:
    _conforms: Backend = MaxTextBackend()
    _exchanges: Exchange = MaxTextBackend()
