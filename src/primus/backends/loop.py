"""The training loop of every engine: schedule, events, validation, checkpoints, traces and ways to stop.

An engine brings its model, its samples and its update as an ``Engine``; when what happens is decided here, so that two
engines do the same thing at the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from primus.backends.base import Result, Session
from primus.backends.checkpointing import RunCheckpoints
from primus.backends.profiling import Profiling, Tracer
from primus.errors import AnomalyError
from primus.events.types import EvalDone, RunStarted, StepDone
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


@dataclass(frozen=True)
class Readings:
    """One step, the same in every process.

    loss: mean over the unmasked targets of the global batch. grad_norm: before clipping. memory_bytes: of the fullest
    device. unfinite_ranks: ranks whose own part of the loss is NaN or infinite, where parts are known. stop: some
    process was asked to stop. updated: the weights have changed already.
    """

    loss: float
    grad_norm: float
    memory_bytes: int
    stop: bool
    unfinite_ranks: tuple[int, ...] = ()
    updated: bool = False


Check = Callable[[Readings], None]
"""Raises TrainingError when a step must not count."""


class Engine(Protocol):
    """Model, optimizer and samples in one process."""

    title: str
    """The engine's name as people spell it."""

    @property
    def checkpoints(self) -> RunCheckpoints: ...

    @property
    def tracer(self) -> Tracer: ...

    def start(self) -> None:
        """Set the weights of a run that begins."""
        ...

    def training(self, step: int) -> AbstractContextManager[object]:
        """Entered after `step` steps, left after the last one."""
        ...

    def step(self, step: int, consumed: int, lr: float, check: Check) -> Readings:
        """Make step number `step` from the global batch after `consumed` samples. `check` is called with what it
        measured: before the weights change, if the engine can, and in any case before it returns."""
        ...

    def validation(self) -> tuple[float, float] | None:
        """Negative log-likelihood summed over the unmasked tokens of the first ``eval.steps`` global batches of the
        validation split, and how many these are, over all processes. None when there is no such split."""
        ...

    def shorten_timeouts(self) -> None:
        """Called once, after the first step, in every one of several processes: it compiles and connects; from now on
        a collective may take ``resilience.hang_timeout``."""
        ...

    def close(self) -> None:
        """Called after the last step and the last checkpoint."""
        ...


class Loop:
    """One process of a run of `engine`."""

    def __init__(self, plan: Plan, session: Session, engine: Engine) -> None:
        self.plan, self.session, self.engine = plan, session, engine
        self.step = self.consumed = 0
        self._profiling = Profiling(plan, session, engine.tracer)
        peak = plan.experiment.hardware.peak_tflops.get(plan.experiment.precision)
        self._flops = None if peak is None else peak * 1e12 * plan.topology.world_size

    def run(self) -> Result:
        """Start or resume, and train to the last step or until a stop is asked for. Raises AnomalyError when loss or
        gradient norm is not finite: no checkpoint holds what came of them."""
        try:
            result = self._run()
            self.engine.close()
        except BaseException:
            self.engine.checkpoints.abandon()
            raise
        return result

    def _run(self) -> Result:
        engine, checkpoints, steps = self.engine, self.engine.checkpoints, self.plan.experiment.train.steps
        resumed = checkpoints.resume()
        if resumed is None:
            engine.start()
        else:
            self.step, self.consumed = resumed.step, resumed.consumed_samples
        self._announce(None if resumed is None else resumed.step)
        if resumed is None:
            self._validate()
        first, stopped = self.step + 1, False
        with engine.training(self.step):
            while self.step < steps and not stopped:
                self.step += 1
                self._profiling.before(self.step)
                stopped = self._train_step()
                self._profiling.after(self.step)
                checkpoints.poll()
                if checkpoints.due(self.step) and self.step < steps and not stopped:
                    checkpoints.save_step(self.step, self.consumed, wait=False)
                if self.step == first and self.session.world_size > 1:
                    engine.shorten_timeouts()
                if not stopped and (self.step == steps or self.step % self.plan.experiment.eval.interval == 0):
                    self._validate()
        checkpoints.finish()
        if checkpoints.saved_step != self.step:
            checkpoints.save_step(self.step, self.consumed, wait=True)
        return Result("stopped" if self.step < steps else "complete", self.step)

    def _announce(self, resumed_from: int | None) -> None:
        plan, session = self.plan, self.session
        if session.rank != 0:
            return
        patches = f"{len(plan.patches)} declared patches of {self.engine.title} apply; plan.json lists them"
        session.emit(
            RunStarted(
                name=plan.experiment.name,
                attempt=session.attempt,
                world_size=plan.topology.world_size,
                device=plan.experiment.hardware.name,
                parameters=plan.parameters,
                steps=plan.experiment.train.steps,
                resumed_from=resumed_from,
                notes=(patches,) if plan.patches else (),
            )
        )

    def _train_step(self) -> bool:
        """One optimizer step. Returns whether any process was asked to stop, the same in all of them."""
        began, train = time.perf_counter(), self.plan.experiment.train
        lr = learning_rate(self.step - 1, self.plan.experiment.optimizer, self.plan.decay_steps)
        readings = self.engine.step(self.step, self.consumed, lr, self._refuse_unfinite)
        self.consumed += train.global_batch_size
        if self.session.rank == 0:
            tokens, seconds = train.global_batch_size * train.seq_length, time.perf_counter() - began
            mfu = None if self._flops is None else self.plan.flops_per_token * tokens / seconds / self._flops
            self.session.emit(
                StepDone(
                    step=self.step,
                    loss=readings.loss,
                    grad_norm=readings.grad_norm,
                    lr=lr,
                    tokens=tokens,
                    seconds=seconds,
                    memory_bytes=readings.memory_bytes,
                    mfu=mfu,
                )
            )
        return readings.stop

    def _refuse_unfinite(self, readings: Readings) -> None:
        ranks, loss, norm = readings.unfinite_ranks, readings.loss, readings.grad_norm
        if not ranks and math.isfinite(loss) and math.isfinite(norm):
            return
        checkpoints = self.engine.checkpoints
        checkpoints.finish()
        what = f"the loss is {loss}"
        what += f", but the gradient norm is {norm}" if math.isfinite(loss) else ""
        which = f" on rank {', '.join(map(str, ranks))}" if ranks else " (one figure for all ranks)"
        consequence = "what it made is not saved" if readings.updated else "no weight was updated with it"
        kept = checkpoints.complete_step
        raise AnomalyError(
            f"{what}{which}; {consequence}",
            where=f"step {self.step}",
            remedy="lower optimizer.lr or optimizer.clip_grad_norm, or look at the data of this step; "
            + (f"the checkpoint of step {kept} is intact" if kept is not None else "there is no checkpoint yet"),
        )

    def _validate(self) -> None:
        began, found = time.perf_counter(), self.engine.validation()
        if found is None or self.session.rank != 0:
            return
        loss, tokens = found
        seconds = time.perf_counter() - began
        self.session.emit(EvalDone(step=self.step, loss=loss / tokens, tokens=round(tokens), seconds=seconds))
