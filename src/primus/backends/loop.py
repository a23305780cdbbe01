"""The training loop of every engine: schedule, events, validation, checkpoints, traces and ways to stop.

An engine brings its model, its samples and its update as an ``Engine``; when what happens is decided here, so that two
engines do the same thing at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from primus.backends.anomaly import Anomalies, samples
from primus.backends.base import Result, Session
from primus.backends.checkpointing import RunCheckpoints
from primus.backends.profiling import Profiling, Tracer
from primus.checkpoints import skipped
from primus.errors import AnomalyError
from primus.events.history import was_validated
from primus.events.types import EvalDone, Notice, RunStarted, StepDone
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


Check = Callable[[Readings], bool]
"""Whether a step counts. Raises AnomalyError when training must not go on."""


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
        measured: before the weights change, if the engine can, and in any case before it returns. When it says False,
        an engine that can ``skip_step`` leaves everything as it was before the call."""
        ...

    def validation(self) -> tuple[float, float] | None:
        """Negative log-likelihood summed over the unmasked tokens of the first ``eval.steps`` global batches of the
        validation split, and how many these are, over all processes. None when there is no such split."""
        ...

    def shorten_timeouts(self) -> None:
        """Called once, after the first step, in every one of several processes: it compiles and connects; from now on
        a collective may take ``units.collective_seconds`` of ``resilience.hang_timeout``."""
        ...

    def close(self) -> None:
        """Called after the last step and the last checkpoint."""
        ...


class Loop:
    """One process of a run of `engine`."""

    def __init__(self, plan: Plan, session: Session, engine: Engine) -> None:
        self.plan, self.session, self.engine = plan, session, engine
        self.step = self.consumed = 0
        """Updates made, and samples passed by: those left out count."""
        self._anomalies = Anomalies(plan, session.attempt, [])
        self._wrong = ""
        """What is wrong with the step that was made last."""
        self._profiling = Profiling(plan, session, engine.tracer)
        peak = plan.experiment.hardware.peak_tflops.get(plan.experiment.precision)
        self._flops = None if peak is None else peak * 1e12 * plan.topology.world_size

    def run(self) -> Result:
        """Start or resume, and train to the last step or until a stop is asked for. Raises AnomalyError when a step
        must not count and ``resilience.anomaly`` goes no further: no checkpoint holds what came of it."""
        try:
            result = self._run()
            self.engine.close()
        except BaseException:
            self.engine.checkpoints.abandon()
            raise
        return result

    def _run(self) -> Result:
        engine, checkpoints, steps = self.engine, self.engine.checkpoints, self.plan.experiment.train.steps
        left_out = checkpoints.on_first_rank(lambda: skipped.read(self.session.run_directory))
        self._anomalies = Anomalies(self.plan, self.session.attempt, left_out)
        resumed = checkpoints.resume()
        if resumed is None:
            engine.start()
        else:
            self.step, self.consumed = resumed.step, resumed.consumed_samples
        self._announce(None if resumed is None else resumed.step)
        if resumed is None or self._owed():
            self._validate()
        first = self.session.world_size > 1
        stopped = False
        with engine.training(self.step):
            while self.step < steps and not stopped:
                before = self.step
                self._profiling.before(before + 1)
                stopped = self._train_step()
                checkpoints.poll()
                if self.step <= before:
                    continue
                self._profiling.after(self.step)
                if checkpoints.due(self.step) and self.step < steps and not stopped:
                    checkpoints.save_step(self.step, self.consumed, wait=False)
                if first:
                    engine.shorten_timeouts()
                    first = False
                if not stopped and self._validates():
                    self._validate()
        checkpoints.finish()
        self._save_last()
        if stopped and self.step == steps:  # nobody would come back to it
            self._validate()
        return Result("stopped" if self.step < steps else "complete", self.step)

    def _validates(self) -> bool:
        """Whether a validation belongs to the step that was reached."""
        experiment = self.plan.experiment
        due = self.step == experiment.train.steps or self.step % experiment.eval.interval == 0
        return due and experiment.data.validation is not None

    def _owed(self) -> bool:
        """Whether the run was ended between the step it resumes from and the validation there."""
        return self._validates() and self.engine.checkpoints.on_first_rank(
            lambda: not was_validated(self.session.run_directory, self.step)
        )

    def _save_last(self) -> None:
        if self.engine.checkpoints.saved_step != self.step:
            self.engine.checkpoints.save_step(self.step, self.consumed, wait=True)

    def _announce(self, resumed_from: int | None, *notes: str) -> None:
        plan, session = self.plan, self.session
        if session.rank != 0:
            return
        if plan.patches and not notes:
            notes = (f"{len(plan.patches)} declared patches of {self.engine.title} apply; plan.json lists them",)
        session.emit(
            RunStarted(
                name=plan.experiment.name,
                attempt=session.attempt,
                world_size=plan.topology.world_size,
                device=plan.experiment.hardware.name,
                parameters=plan.parameters,
                steps=plan.experiment.train.steps,
                resumed_from=resumed_from,
                notes=notes,
            )
        )

    def _train_step(self) -> bool:
        """Make the next step, or leave its batch out. Returns whether any process was asked to stop, the same in all of
        them."""
        if (passed := self._anomalies.pass_over(self.consumed)) > 0:
            self._notice(f"{samples(self.consumed, passed)} are left out, as {skipped.FILE} says", self.step + 1)
            self.consumed += passed
        began, train = time.perf_counter(), self.plan.experiment.train
        lr = learning_rate(self.step, self.plan.experiment.optimizer, self.plan.decay_steps)
        self._wrong = ""
        readings = self.engine.step(self.step + 1, self.consumed, lr, self._check)
        if self._wrong:
            self._leave_out()
            return readings.stop
        self.step += 1
        self.consumed += train.global_batch_size
        self._anomalies.learnt(self.step, readings.loss)
        self.session.finished(self.step)
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

    def _check(self, readings: Readings) -> bool:
        """``Check`` of the step that is being made."""
        self._wrong = self._anomalies.found(readings)
        if not self._wrong:
            return True
        checkpoints, policy = self.engine.checkpoints, self.plan.experiment.resilience.anomaly
        if policy == "skip_step" and not self._anomalies.exhausted(self.step + 1, None):
            return False
        checkpoints.finish()
        kept = checkpoints.complete_step
        exhausted = self._anomalies.exhausted(self.step + 1, kept)
        if policy == "rollback" and not exhausted:
            return False
        consequence = "what it made is not saved" if readings.updated else "no weight was updated with it"
        raise AnomalyError(
            "; ".join(filter(None, [self._wrong, exhausted, consequence])),
            where=f"step {self.step + 1}",
            remedy="lower optimizer.lr or optimizer.clip_grad_norm, or look at the data of this step; "
            + (f"the checkpoint of step {kept} is intact" if kept is not None else "there is no checkpoint yet"),
        )

    def _leave_out(self) -> None:
        """Answer the anomaly of the batch that a step was just made of, as ``resilience.anomaly`` says."""
        number, back = self.step + 1, self.plan.experiment.resilience.anomaly == "rollback"
        kept = self.engine.checkpoints.complete_step if back else None
        entry = self._anomalies.leave_out(number, self.consumed, self._wrong, kept)
        lost = samples(entry.first, entry.count)
        if self.session.rank == 0:
            try:
                skipped.write(self.session.run_directory, self._anomalies.skipped)
            except OSError as error:
                self._notice(f"{skipped.FILE} cannot be written: {error.strerror}; {lost} may come again", number)
        if not back:
            self.consumed += entry.count
            self._notice(f"{self._wrong}; {lost} are left out, nothing was updated with them", number)
            return
        resumed = self.engine.checkpoints.resume()
        if resumed is None:
            raise AnomalyError(
                f"{self._wrong}; there is no checkpoint to go back to",
                where=f"step {number}",
                remedy=f"start again: training leaves {lost} out",
                retryable=True,
            )
        self.step, self.consumed = resumed.step, resumed.consumed_samples
        self._anomalies.returned(self.step)
        self._announce(
            self.step, f"back from step {number}: {self._wrong}; {lost} are left out when training comes there again"
        )

    def _notice(self, message: str, step: int) -> None:
        if self.session.rank == 0:
            self.session.emit(Notice(message=message, step=step))

    def _validate(self) -> None:
        began, found = time.perf_counter(), self.engine.validation()
        if found is None or self.session.rank != 0:
            return
        loss, tokens = found
        seconds = time.perf_counter() - began
        self.session.emit(EvalDone(step=self.step, loss=loss / tokens, tokens=round(tokens), seconds=seconds))
