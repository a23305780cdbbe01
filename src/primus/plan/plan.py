"""The Plan: everything a run needs, resolved once on the launching machine, frozen, carried as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from primus.config.experiment import Experiment, Workflow

PLAN_FORMAT = 1


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Topology(Frozen):
    """Sizes of every axis. ``world_size == data_replicate * data_shard * context * tensor * pipeline``."""

    nnodes: int
    nproc_per_node: int
    data_replicate: int
    data_shard: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    micro_batch_size: int
    microbatches: int = Field(description="Forward passes a rank makes per optimizer step (gradient accumulation).")
    replica_groups: int = Field(1, description="Groups of ranks along data_replicate that may fail one by one.")

    @property
    def world_size(self) -> int:
        return self.nnodes * self.nproc_per_node

    @property
    def group_size(self) -> int:
        """Ranks that fail together."""
        return self.world_size // self.replica_groups

    @property
    def data_parallel(self) -> int:
        """Number of distinct slices of the global batch."""
        return self.data_replicate * self.data_shard


class PlannedSource(Frozen):
    """One prepared dataset. ``digest`` is its manifest's hash; ``share`` its count out of 4096 mixture slots."""

    prefix: str
    digest: str
    share: int
    tokens: int
    documents: int
    dtype: Literal["uint16", "int32", "uint8", "int8", "int16", "int64"]


class PlannedData(Frozen):
    """kind ``synthetic`` has no sources. ``validation`` holds a fraction or separate sources."""

    kind: Literal["indexed", "synthetic"]
    sources: tuple[PlannedSource, ...] = ()
    validation_fraction: float = 0.0
    validation_sources: tuple[PlannedSource, ...] = ()
    document_attention: Literal["full", "within"] = "full"
    mask_eod: bool = False
    eod_id: int | None = None
    tokenizer: str | None = Field(None, description="Directory with tokenizer.json, absolute.")
    tokenizer_hash: str | None = None
    digest: str = Field(description="Hash over all sources, shares and split: what the sample order is keyed by.")


class Patch(Frozen):
    """A declared change to an engine's code. ``target`` is a dotted path."""

    target: str
    versions: str
    reason: str
    removal: str


class Plan(Frozen):
    format: int = PLAN_FORMAT
    workflow: Workflow
    experiment: Experiment
    topology: Topology
    data: PlannedData
    run_directory: str = Field(description="Absolute.")
    environment: str
    engine: dict[str, str] = Field(description="Package versions the native config was made for.")
    native: dict[str, Any] = Field(description="The engine's own configuration.")
    env: dict[str, str]
    patches: tuple[Patch, ...] = ()
    parameters: int = Field(description="Parameter count of the model.")
    flops_per_token: float = Field(description="Training FLOPs a token, forward and backward.")
    decay_steps: int = Field(description="Resolved optimizer.schedule.decay_steps; stays when the run continues.")
    origins: dict[str, str] = Field(description="Dotted key -> where its value came from.")

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls.model_validate_json(text)

    @classmethod
    def load(cls, path: Path) -> Plan:
        return cls.from_json(path.read_text(encoding="utf-8"))
