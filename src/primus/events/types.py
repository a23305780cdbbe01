"""What a run reports. Frozen, flat, JSON-ready; ``time`` is Unix seconds, set when the event is emitted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    kind: ClassVar[str]

    def to_record(self) -> dict[str, Any]:
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """A node's launcher is about to start the agent of its ranks. node: its name; node_rank: 0 to nodes - 1."""

    kind: ClassVar[str] = "attempt_started"
    node: str
    node_rank: int
    nodes: int


@dataclass(frozen=True, kw_only=True)
class RanksStarted(Event):
    """The agent of a node is about to start its ranks, ``first_rank`` to ``last_rank``, for the first time in the
    attempt (``restart`` 0) or again."""

    kind: ClassVar[str] = "ranks_started"
    node: str
    node_rank: int
    first_rank: int
    last_rank: int
    restart: int


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """``resumed_from`` is the step of the checkpoint loaded, None for a fresh start. ``notes``: lines worth showing."""

    kind: ClassVar[str] = "run_started"
    name: str
    attempt: int
    world_size: int
    device: str
    parameters: int
    steps: int
    resumed_from: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer step. loss: mean NLL in nats a token; tokens: in this step, all ranks; seconds: of this step;
    memory_bytes: peak on the fullest device; mfu: fraction of peak, None where the peak is unknown."""

    kind: ClassVar[str] = "step_done"
    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    memory_bytes: int
    mfu: float | None = None
    auxiliary: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class EvalDone(Event):
    kind: ClassVar[str] = "eval_done"
    step: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """Emitted when the checkpoint is complete and visible. blocked_seconds: how long training stood still for it."""

    kind: ClassVar[str] = "checkpoint_saved"
    step: int
    path: str
    bytes: int
    seconds: float
    blocked_seconds: float


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something a person should read: a skipped checkpoint, a fallback, a profile written."""

    kind: ClassVar[str] = "notice"
    message: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class RankFailed(Event):
    """cause: ``error`` (it raised one), ``anomaly`` (a loss or gradient norm that must not count), ``died`` (it left
    without a word: a signal, an exit code), ``hang`` (the run hung, and the others waited for this
    one as far as it could be told)."""

    kind: ClassVar[str] = "rank_failed"
    rank: int
    node: str
    error: str
    traceback: str
    step: int | None = None
    remedy: str = ""
    retryable: bool = True
    cause: str = "error"


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """reason: ``complete``, ``stopped`` (signal), or ``failed``."""

    kind: ClassVar[str] = "run_ended"
    reason: str
    step: int


EVENTS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (
        AttemptStarted, RanksStarted, RunStarted, StepDone, EvalDone, CheckpointSaved, Notice, RankFailed, RunEnded,
    )
}  # fmt: skip
