"""The training loop of every PyTorch engine: samples, schedule, events, validation, checkpoints and ways to stop.

An engine brings its model, its schedule of microbatches and its optimizer as an ``Engine``; when what happens is
decided here, so that two engines do the same thing at the same step.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from primus.backends.base import Result, Session
from primus.backends.checkpointing import RunCheckpoints
from primus.backends.pytorch.meter import Meter, Readings
from primus.backends.pytorch.profiling import Profiling
from primus.backends.pytorch.samples import Microbatch, TrainingSamples, ValidationSamples
from primus.data.reader import IGNORED
from primus.errors import TrainingError
from primus.events.types import EvalDone, RunStarted
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


class Engine(Protocol):
    """Model and optimizer on one rank."""

    title: str
    """The engine's name as people spell it."""
    device: torch.device

    @property
    def samples(self) -> TrainingSamples: ...

    @property
    def checkpoints(self) -> RunCheckpoints: ...

    @property
    def loss_counts(self) -> bool:
        """Whether this rank's loss is part of the global one: on the last pipeline stage, and first among the ranks
        that all hold the same."""
        ...

    def start(self) -> None:
        """Set the weights of a run that begins."""
        ...

    def training(self, step: int) -> AbstractContextManager[object]:
        """Entered after `step` steps, left after the last one."""
        ...

    def gradients(self, step: int, microbatches: list[Microbatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the gradients of a step. Returns this rank's share of the global mean loss and the norm of the whole
        model's gradient before it is clipped, both []; the norm is the same on every rank."""
        ...

    def update(self, lr: float, norm: float) -> None:
        """Change the weights with the gradients, whose norm is `norm`."""
        ...

    def validating(self) -> AbstractContextManager[object]:
        """Put the model into evaluation."""
        ...

    def validation_loss(self, microbatches: list[Microbatch]) -> float:
        """Negative log-likelihood summed over this rank's unmasked targets."""
        ...

    def shorten_timeouts(self) -> None:
        """Called once, after the first step, on every one of several ranks: it compiles and connects; from now on a
        collective may take ``resilience.hang_timeout``."""
        ...

    def close(self) -> None:
        """Called after the last step and the last checkpoint."""
        ...


class Loop:
    """One rank of a run of `engine`."""

    def __init__(self, plan: Plan, session: Session, engine: Engine) -> None:
        self.plan, self.session, self.engine = plan, session, engine
        self.step = 0
        self._meter = Meter(plan, session, engine.device, engine.loss_counts)
        self._profiling = Profiling(plan, session)
        self._validation = ValidationSamples.open(plan, engine.samples.dp_rank, plan.topology.micro_batch_size)

    def run(self) -> Result:
        """Start or resume, and train to the last step or until a stop is asked for. Raises TrainingError when loss or
        gradient norm is not finite, before anything is updated."""
        engine, checkpoints, steps = self.engine, self.engine.checkpoints, self.plan.experiment.train.steps
        resumed = checkpoints.resume()
        if resumed is None:
            engine.start()
        else:
            self.step, engine.samples.consumed = resumed.step, resumed.consumed_samples
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
                    checkpoints.save_step(self.step, engine.samples.consumed, wait=False)
                if self.step == first and self.session.world_size > 1:
                    engine.shorten_timeouts()
                if not stopped and (self.step == steps or self.step % self.plan.experiment.eval.interval == 0):
                    self._validate()
        checkpoints.finish()
        if checkpoints.saved_step != self.step:
            checkpoints.save_step(self.step, engine.samples.consumed, wait=True)
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
                world_size=session.world_size,
                device=plan.experiment.hardware.name,
                parameters=plan.parameters,
                steps=plan.experiment.train.steps,
                resumed_from=resumed_from,
                notes=(patches,) if plan.patches else (),
            )
        )

    def _train_step(self) -> bool:
        """One optimizer step. Returns whether any rank was asked to stop, the same on all ranks."""
        began, engine = time.perf_counter(), self.engine
        microbatches = list(engine.samples.step(engine.samples.consumed))
        loss, norm = engine.gradients(self.step, microbatches)
        readings = self._meter.read(loss, norm)
        self._refuse_unfinite(readings)
        engine.checkpoints.maybe_wait_for_staging()
        lr = learning_rate(self.step - 1, self.plan.experiment.optimizer, self.plan.decay_steps)
        engine.update(lr, readings.grad_norm)
        engine.samples.consumed += self.plan.experiment.train.global_batch_size
        self._meter.report(self.step, readings, lr, time.perf_counter() - began)
        return readings.stop

    def _refuse_unfinite(self, readings: Readings) -> None:
        """Before the update, so that the checkpoints on the disk are from finite steps."""
        ranks = readings.unfinite_ranks
        if not ranks and math.isfinite(readings.grad_norm):
            return
        checkpoints = self.engine.checkpoints
        checkpoints.finish()
        what = f"the loss is {readings.loss}"
        what += "" if ranks else f", but the gradient norm is {readings.grad_norm}"
        which = f" on rank {', '.join(map(str, ranks))}" if ranks else " (one norm for all ranks)"
        kept = checkpoints.complete_step
        raise TrainingError(
            f"{what}{which}; no weight was updated with it",
            where=f"step {self.step}",
            remedy="lower optimizer.lr or optimizer.clip_grad_norm, or look at the data of this step; "
            + (f"the checkpoint of step {kept} is intact" if kept is not None else "there is no checkpoint yet"),
        )

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean negative log-likelihood over the unmasked tokens of the first ``eval.steps`` global batches of the
        validation split, if there is one; on all ranks."""
        if self._validation is None:
            return
        began, loss, tokens = time.perf_counter(), 0.0, 0
        with self.engine.validating():
            for index in range(self._validation.batches):
                microbatches = list(self._validation.step(index))
                tokens += sum(int((labels != IGNORED).sum()) for _, labels in microbatches)
                loss += self.engine.validation_loss(microbatches)
        # context-parallel ranks share sequences: each has a part of the loss, all of them count the same targets
        total, counted = self._meter.total([loss, tokens / self.plan.topology.context])
        if self._meter.reports:
            seconds = time.perf_counter() - began
            self.session.emit(EvalDone(step=self.step, loss=total / counted, tokens=round(counted), seconds=seconds))
