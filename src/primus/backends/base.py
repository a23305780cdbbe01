"""The protocol every training engine's adapter fulfils."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from primus.config.experiment import Experiment
from primus.events.types import Event
from primus.plan.plan import Patch, Plan, PlannedData, Topology

Progress = Callable[[int, int], None]
"""(tensors done, tensors in all)."""

Processes = Literal["torchrun", "plain", "per_node"]
"""How the processes of a run are started: one a device by torchrun's agent; one a device by ours; one a node by ours,
which holds all its devices."""

NativeConfig = dict[str, Any]
"""JSON-ready configuration of one engine, as its worker understands it."""


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; the planner refuses the rest before anything starts."""

    workflows: frozenset[str]
    model_types: frozenset[str]
    parallel_axes: frozenset[str]
    precisions: dict[str, frozenset[str]]
    """Device kind (cpu, cuda, rocm) -> precisions."""
    anomaly: frozenset[str] = frozenset()
    """What it can do of ``resilience.anomaly`` beside ``stop``. With any of it, it finds spikes as well."""
    fault_tolerance: dict[str, str] = field(default_factory=dict)
    """What it can do of ``resilience.fault_tolerance`` beside ``restart`` -> the environment that has what it takes."""
    unsupported: dict[str, str] = field(default_factory=dict)
    """Dotted portable key, or ``key=value`` -> why it cannot be honoured."""


@dataclass(frozen=True)
class NativeKey:
    """One key of the engine's own configuration. ``portable`` names the portable key that sets it, if any: setting
    such a key natively is an error that points there."""

    type: str
    default: Any = None
    choices: tuple[Any, ...] = ()
    description: str = ""
    portable: str | None = None


class Omitted(NamedTuple):
    """A key of the engine's own that is not offered. default: what the engine has it at, also here."""

    reason: str
    default: Any


@dataclass(frozen=True)
class NativeSchema:
    """Snapshot of the engine's configuration: dotted key -> NativeKey, for exactly these package versions. omitted:
    keys of the engine that an experiment may not set; a snapshot need not name them."""

    engine: dict[str, str]
    keys: dict[str, NativeKey]
    omitted: dict[str, Omitted] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> NativeSchema:
        """From what a backend's ``generate_schema`` wrote."""
        snapshot = json.loads(text)
        keys = {
            name: NativeKey(**{**key, "choices": tuple(key.get("choices", ()))})
            for name, key in snapshot["keys"].items()
        }
        omitted = {
            name: Omitted(reason, default)
            for reason, names in snapshot.get("omitted", {}).items()
            for name, default in names.items()
        }
        return cls(snapshot["engine"], keys, omitted)


@dataclass(frozen=True)
class Session:
    """What a worker process knows about its run. Made by ``primus.runtime.worker``."""

    rank: int
    local_rank: int
    world_size: int
    """Ranks, of which ``rank`` is one: those of this process's replica group, where there are several."""
    run_directory: Path
    attempt_directory: Path
    attempt: int
    emit: Callable[[Event], None]
    stop_requested: Callable[[], bool]
    """This process was asked to stop. Not collective: a backend agrees on it across ranks at a step boundary."""
    finished: Callable[[int], None] = lambda step: None
    """Called in every process with the number of the step that it has just finished."""
    group: int = 0
    """The replica group."""

    @property
    def number(self) -> int:
        """Of this rank in the whole run, all groups counted."""
        return self.group * self.world_size + self.rank


@dataclass(frozen=True)
class Result:
    """How ``run`` ended. reason: ``complete`` or ``stopped``."""

    reason: Literal["complete", "stopped"]
    step: int


@runtime_checkable
class Backend(Protocol):
    name: str
    environment: str
    processes: Processes

    def capabilities(self) -> Capabilities: ...

    def native_schema(self) -> NativeSchema: ...

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        """Translate. Pure and without heavy imports. Returns the native config, extra environment variables of the
        ranks, and the patches the worker will apply. Raises PlanError for what cannot be honoured."""
        ...

    def run(self, plan: Plan, session: Session) -> Result:
        """Train. The only place with heavy imports. Called once in every worker process."""
        ...


@runtime_checkable
class Varied(Protocol):
    """What a backend offers beside whose environment depends on the devices."""

    def environment_on(self, device: str) -> str:
        """The environment for devices of a kind (cpu, cuda, rocm); ``environment`` is the one for the CPU."""
        ...


def environment_on(backend: Backend, device: str) -> str:
    """The environment that `backend` trains in on devices of kind `device`."""
    return backend.environment_on(device) if isinstance(backend, Varied) else backend.environment


@runtime_checkable
class Described(Protocol):
    """What a backend offers beside that supports several versions of its engine."""

    def described_schema(self) -> NativeSchema:
        """The keys that the reference page lists, whatever is installed where it is written."""
        ...


@runtime_checkable
class Extended(Protocol):
    """What a backend offers beside whose own keys can add to the portable model."""

    def added_size(self, experiment: Experiment) -> tuple[int, float]:
        """Parameters, and training FLOPs a token, that the engine's model has beyond the portable one. Pure."""
        ...


@runtime_checkable
class Exchange(Protocol):
    """What a backend offers beside whose runs can move to another engine and come from one, and whose weights can be
    exported. Each call runs in a process of the backend's own environment, and knows nothing of any other engine."""

    def export_weights(self, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        """Write the weights of the complete `checkpoint` into the empty `directory`, as safetensors under Hugging
        Face's names. dtype: float32, bfloat16 or float16. Raises CheckpointError, also when Hugging Face's format
        cannot hold what was trained."""
        ...

    def export_state(self, checkpoint: Path, directory: Path, progress: Progress) -> None:
        """Write the complete `checkpoint` into the empty `directory`: ``weights``, ``exp_avg`` and ``exp_avg_sq``, each
        a safetensors directory of fp32 tensors under Hugging Face's names, and ``state.json`` with ``step``,
        ``consumed_samples`` and ``model``. Raises CheckpointError."""
        ...

    def import_state(self, directory: Path, checkpoint: Path, progress: Progress) -> None:
        """Make the empty directory `checkpoint` a complete checkpoint of this backend with that state. Raises
        CheckpointError."""
        ...
