"""TorchTitan behind the backend protocol. Planning is pure and imports neither torch nor torchtitan."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from primus.backends.base import (
    Capabilities,
    NativeConfig,
    NativeSchema,
    Processes,
    Progress,
    Result,
    Session,
)
from primus.backends.torchtitan.models import limits
from primus.config.experiment import Experiment
from primus.plan.plan import Patch, Plan, PlannedData, Topology

if TYPE_CHECKING:
    from primus.backends.base import Backend, Exchange


class TorchTitanBackend:
    """Pre-training with TorchTitan 0.3.0."""

    name = "torchtitan"
    environment = "torch"
    processes: Processes = "torchrun"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=frozenset(limits.ROPE_TYPES),
            parallel_axes=frozenset({"data_shard", "data_replicate", "tensor", "pipeline", "context", "expert"}),
            precisions={
                "cpu": frozenset({"fp32", "bf16", "fp8"}),
                "cuda": frozenset({"fp32", "bf16", "fp8"}),
                "rocm": frozenset({"fp32", "bf16", "fp8"}),
            },
            anomaly=frozenset({"skip_step", "rollback"}),
            fault_tolerance={"torchft": "torchft"},
            unsupported={"moe.balance=aux_loss": "TorchTitan has no auxiliary balance loss; use bias or none"},
        )

    def native_schema(self) -> NativeSchema:
        return _schema()

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        from primus.backends.torchtitan.patches import for_device
        from primus.backends.torchtitan.translate import native_config

        device = experiment.hardware.device
        env = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if device == "cuda" else {}
        if device == "cpu":
            # threads that spin while they wait take the cores from each other: 4 times slower on a busy machine
            env["OMP_WAIT_POLICY"] = "PASSIVE"
        return native_config(experiment, topology, data), env, for_device(device)

    def run(self, plan: Plan, session: Session) -> Result:
        from primus.backends.torchtitan.worker import run

        return run(plan, session)

    def export_weights(self, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        from primus.backends.torchtitan.export import FORMAT

        FORMAT.export_weights(checkpoint, directory, dtype, progress)

    def export_state(self, checkpoint: Path, directory: Path, progress: Progress) -> None:
        from primus.backends.torchtitan.export import FORMAT

        FORMAT.export_state(checkpoint, directory, progress)

    def import_state(self, directory: Path, checkpoint: Path, progress: Progress) -> None:
        from primus.backends.pytorch import exchange
        from primus.backends.torchtitan.export import layout

        exchange.import_state(layout, self.name, directory, checkpoint, progress)


@cache
def _schema() -> NativeSchema:
    return NativeSchema.from_json((files(__package__) / "native_schema.json").read_text(encoding="utf-8"))


if TYPE_CHECKING:
    _conforms: Backend = TorchTitanBackend()
    _exchanges: Exchange = TorchTitanBackend()
