"""What MLflow and W&B share: one curve over all attempts of a run, of which each step is sent once.

Trackers only append, so of a step that came again after a resume they keep the first report, while readers of the event
files keep the last. At the same layout both are equal to the bit.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from primus.events.jsonl import Record
from primus.plan.plan import Plan

Ending = Literal["complete", "stopped", "failed"]
_NEWEST = {"step_done": "step", "eval_done": "evaluation", "checkpoint_saved": "checkpoint"}
"""Kind of a record that is sent once a step -> where a mark has the newest."""


@dataclass
class Mark:
    """How far a tracker is. id: its own name of the run; where: the server or project that gave it; attempt and time:
    of the newest start it has; step, evaluation and checkpoint: the newest of each; behind: not all of an attempt that
    has ended arrived, as far as is known.

    All of it is told by rank 0 alone: the clocks of several nodes need not agree."""

    id: str = ""
    where: str = ""
    attempt: int = 1
    time: float = 0.0
    step: int = 0
    evaluation: int = -1
    checkpoint: int = -1
    behind: bool = False

    def advance(self, record: Record) -> bool:
        """Take note of a record; whether it is one to send, and new."""
        kind = record["event"]
        if kind == "run_started":
            start, known = (record["attempt"], record["time"]), (self.attempt, self.time)
            self.attempt, self.time = max(start, known)
            return start > known
        if kind not in _NEWEST:
            return False
        newest: int = getattr(self, _NEWEST[kind])
        setattr(self, _NEWEST[kind], max(record["step"], newest))
        return bool(record["step"] > newest)

    @classmethod
    def load(cls, path: Path) -> Mark:
        """From its file; a new one when there is none, or nothing that can be used."""
        try:
            values = {**asdict(cls()), **json.loads(path.read_text(encoding="utf-8"))}  # an older mark has less
            if all(_fits(values[field.name], field.default) for field in fields(cls)):
                return cls(**values)
        except (OSError, ValueError, TypeError):
            return cls()
        return cls()

    def save(self, path: Path) -> None:
        """A reader sees the old one or this one. Raises OSError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _fits(value: Any, default: Any) -> bool:
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def mark_file(run_directory: Path, name: str) -> Path:
    return run_directory / "monitor" / f"{name}.json"


class Tracker(ABC):
    """A receiver that keeps one run of its own for all attempts."""

    title: str
    name: str
    """Of its section of the experiment file, and of its mark."""

    def __init__(self, plan: Plan, attempt: int) -> None:
        self.plan, self.attempt = plan, attempt
        self.run_directory = Path(plan.run_directory)
        self.path = mark_file(self.run_directory, self.name)
        self.mark = Mark.load(self.path)
        self.ending: Ending | None = None

    @property
    def first_attempt(self) -> int:
        return self.mark.attempt

    @abstractmethod
    def open(self) -> str:
        """Find or make the tracker's own run, and call ``begin``."""

    def owe(self) -> None:
        """Note, before anything can go wrong, that there is something to deliver."""
        self.mark.behind = True
        self.mark.save(self.path)

    def begin(self, where: str, identity: str) -> None:
        """Note where the run is kept; one that is kept elsewhere begins anew, with everything."""
        if (self.mark.where, self.mark.id) != (where, identity):
            self.mark = Mark(identity, where)
        self.owe()

    def take(self, records: Sequence[Record]) -> None:
        ahead = copy(self.mark)
        self.deliver([record for record in records if ahead.advance(record)])
        for record in records:
            self._end(record)
        self.mark = ahead
        self.mark.save(self.path)

    @abstractmethod
    def deliver(self, records: Sequence[Record]) -> None:
        """Send new records, steps ascending."""

    def close(self) -> None:
        self.finish(self.ending)
        self.settle()

    def settle(self) -> None:
        """Nothing is to be delivered from here any more."""
        self.mark.behind = False
        self.mark.save(self.path)

    @abstractmethod
    def finish(self, ending: Ending | None) -> None:
        """The attempt has ended, None: without saying how."""

    def _end(self, record: Record) -> None:
        """How the attempt ends: a failure stays one until the processes start again."""
        if record["attempt"] != self.attempt:
            return
        if record["event"] == "run_started":
            self.ending = None
        elif record["event"] == "run_ended" and self.ending != "failed":
            self.ending = record["reason"]


def parameters(plan: Plan) -> dict[str, str]:
    """Dotted key -> value as text, of ``settings``."""
    flat: dict[str, str] = {}
    _flatten(settings(plan), "", flat)
    return flat


def settings(plan: Plan) -> dict[str, Any]:
    """The resolved experiment, with the engine's own keys where a person writes them. There is no secret in it: the
    planner refuses them."""
    values = plan.experiment.model_dump(mode="json", by_alias=True, exclude_none=True)
    native = values.pop("native", {}).get(plan.experiment.backend)
    return values | ({plan.experiment.backend: native} if native else {})


def _flatten(value: Any, prefix: str, into: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{prefix}.{key}" if prefix else str(key), into)
    else:
        into[prefix] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def facts(plan: Plan) -> dict[str, str]:
    """What is worth finding a run by, besides its experiment."""
    return {
        "primus.backend": plan.experiment.backend,
        "primus.device": plan.experiment.hardware.name,
        "primus.world_size": str(plan.topology.world_size),
        "primus.parameters": str(plan.parameters),
        "primus.run_directory": plan.run_directory,
        "primus.workflow": plan.workflow,
    }
