"""A small engine for the loop of all engines: least squares by gradient descent in NumPy. What the loop itself decides
is tried with it in milliseconds; the engines for large models are tried elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tiny import make

from primus.backends.base import Result, Session
from primus.backends.checkpointing import RunCheckpoints, Stage
from primus.backends.loop import Check, Loop, Readings
from primus.checkpoints.store import CheckpointInfo
from primus.events.types import Event
from primus.plan.plan import Plan

T = TypeVar("T")
BATCH = 8
STEPS = 12


def plan(run_directory: Path, **options: Any) -> Plan:
    defaults = {"train__steps": STEPS, "train__global_batch_size": BATCH, "checkpoint__interval": 3}
    return make(run_directory, "synthetic", **defaults | {"optimizer__lr": 0.05} | options)


class Files(RunCheckpoints):
    """The weights in one file, written in `pieces`, each after `piece_seconds`, as by a slow disk."""

    def __init__(self, plan: Plan, session: Session, engine: Regression) -> None:
        super().__init__(plan, session)
        self._engine = engine
        self.pieces, self.piece_seconds = 1, 0.0
        self.writing = self.most_writing = 0

    def _prepare(self, *, background: bool) -> Stage:
        weights = self._engine.weights.copy()

        def write(directory: Path) -> dict[str, str]:
            self.writing += 1
            self.most_writing = max(self.most_writing, self.writing)
            try:
                with (directory / "weights").open("wb", buffering=0) as file:
                    for piece in np.array_split(weights, self.pieces):
                        time.sleep(self.piece_seconds)
                        file.write(piece.tobytes())
                    os.fsync(file.fileno())
            finally:
                self.writing -= 1
            return {}

        return lambda: write

    def _read(self, info: CheckpointInfo) -> None:
        self._engine.weights[:] = np.fromfile(info.directory / "weights")

    def _gather(self, value: T) -> list[T]:
        return [value]

    def _from_first_rank(self, value: T) -> T:
        return value


class Regression:
    """targets: sample -> its target, where that is not the true one."""

    title = "Regression"

    def __init__(self, plan: Plan, session: Session, targets: dict[int, float], size: int) -> None:
        self.weights = np.zeros(size)
        self.checkpoints = Files(plan, session, self)
        self.tracer: Any = None
        self._batch, self._targets, self._session = plan.experiment.train.global_batch_size, targets, session

    def start(self) -> None:
        self.weights[:] = 0

    def training(self, step: int) -> AbstractContextManager[object]:
        return nullcontext()

    def step(self, step: int, consumed: int, lr: float, check: Check) -> Readings:
        loss, gradient = self.of_batch(consumed // self._batch)
        readings = Readings(loss, float(np.linalg.norm(gradient)), 1, self._session.stop_requested())
        if check(readings):
            self.weights -= lr * gradient
        return readings

    def of_batch(self, number: int) -> tuple[float, NDArray[np.float64]]:
        """Mean squared error and gradient of a global batch."""
        indices = range(number * self._batch, (number + 1) * self._batch)
        inputs = np.stack([np.random.default_rng(index).normal(size=self.weights.size) for index in indices])
        targets = np.array([self._targets.get(index, inputs[row].sum()) for row, index in enumerate(indices)])
        error = inputs @ self.weights - targets
        return float(np.mean(error**2)), 2 * inputs.T @ error / self._batch

    def validation(self) -> tuple[float, float] | None:
        return float(np.sum((self.weights - 1) ** 2)), 1.0

    def shorten_timeouts(self) -> None:
        pass

    def close(self) -> None:
        self.checkpoints.shut_down()


class Run:
    """One start of a run in this process. heard: its events."""

    def __init__(
        self,
        plan: Plan,
        *,
        targets: dict[int, float] | None = None,
        attempt: int = 1,
        size: int = 4,
        hear: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        directory = Path(plan.run_directory)
        self.heard: list[Any] = []
        session = Session(
            rank=0,
            local_rank=0,
            world_size=1,
            run_directory=directory,
            attempt_directory=directory / "attempts" / str(attempt),
            attempt=attempt,
            emit=lambda event: (self.heard.append(event), hear(event))[0],
            stop_requested=stop,
        )
        session.attempt_directory.mkdir(parents=True, exist_ok=True)
        self.engine = Regression(plan, session, targets or {}, size)
        self.loop = Loop(plan, session, self.engine)

    def go(self) -> Result:
        return self.loop.run()

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.heard if event.kind == kind]

    @property
    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.of("step_done")}

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.of("notice")]
