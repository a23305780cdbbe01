"""Megatron behind the backend protocol. Planning is pure and imports neither torch nor Megatron."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from primus.backends.base import Capabilities, NativeConfig, NativeSchema, Processes, Progress, Result, Session
from primus.config.experiment import Experiment
from primus.plan.plan import Patch, Plan, PlannedData, Topology

if TYPE_CHECKING:
    from primus.backends.base import Backend, Exchange, Extended

ENVIRONMENT = {
    # what AMD's recipes for Llama set; the engine's own loop asks for the last on any accelerator
    "rocm": {"GPU_MAX_HW_QUEUES": "2", "HSA_NO_SCRATCH_RECLAIM": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    "cuda": {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    # threads that spin while they wait take the cores from each other
    "cpu": {"OMP_WAIT_POLICY": "PASSIVE"},
}


MODEL_TYPES = frozenset(
    {"llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "llama4_text", "deepseek_v2", "deepseek_v3"}
)


class MegatronBackend:
    """Pre-training with megatron.core."""

    name = "megatron"
    environment = "torch"
    processes: Processes = "torchrun"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=MODEL_TYPES,
            parallel_axes=frozenset({"data_shard", "data_replicate", "tensor", "pipeline", "context", "expert"}),
            precisions={kind: frozenset({"fp32", "bf16"}) for kind in ("cpu", "cuda", "rocm")},
            anomaly=frozenset({"skip_step", "rollback"}),
            unsupported={
                "compile=true": "Megatron's layers are not compiled as a whole",
                "parallel.schedule=gpipe": "Megatron's schedules are 1f1b and interleaved_1f1b",
            },
        )

    def native_schema(self) -> NativeSchema:
        from primus.backends.megatron.schema import schema

        return schema()

    def described_schema(self) -> NativeSchema:
        from primus.backends.megatron.schema import described_schema

        return described_schema()

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        from primus.backends.megatron.patches import for_device
        from primus.backends.megatron.translate import native_config

        device = experiment.hardware.device
        return native_config(experiment, topology, data), dict(ENVIRONMENT[device]), for_device(device)

    def added_size(self, experiment: Experiment) -> tuple[int, float]:
        from primus.backends.megatron.translate import prediction_size

        return prediction_size(experiment)

    def run(self, plan: Plan, session: Session) -> Result:
        from primus.backends.megatron.worker import run

        return run(plan, session)

    def export_weights(self, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        from primus.backends.megatron.export import FORMAT

        FORMAT.export_weights(checkpoint, directory, dtype, progress)

    def export_state(self, checkpoint: Path, directory: Path, progress: Progress) -> None:
        from primus.backends.megatron.export import FORMAT

        FORMAT.export_state(checkpoint, directory, progress)

    def import_state(self, directory: Path, checkpoint: Path, progress: Progress) -> None:
        from primus.backends.megatron.export import layout
        from primus.backends.pytorch import exchange

        exchange.import_state(layout, self.name, directory, checkpoint, progress)


if TYPE_CHECKING:
    _conforms: Backend = MegatronBackend()
    _exchanges: Exchange = MegatronBackend()
    _extended: Extended = MegatronBackend()
