"""The training loop around MaxText's compiled steps."""

from __future__ import annotations

import math
import time

import jax
import numpy as np
from flax.core.spmd import logical_axis_rules
from jax.experimental import multihost_utils

from primus.backends.base import Result, Session
from primus.backends.maxtext import model as models
from primus.backends.maxtext.batches import Batches
from primus.backends.maxtext.checkpoint import Checkpoints
from primus.backends.maxtext.layout import weights
from primus.data.reader import open_training, open_validation
from primus.errors import TrainingError
from primus.events.types import EvalDone, RunStarted, StepDone
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


class Trainer:
    """One process of a run."""

    def __init__(self, plan: Plan, session: Session) -> None:
        self.plan, self.session = plan, session
        self.step = self.consumed = 0
        self.built = models.build(plan)
        self.checkpoints = Checkpoints(plan, session, self.built)
        train = plan.experiment.train
        within = plan.data.document_attention == "within"
        sizes = (train.global_batch_size, train.seq_length, self.built.batch_sharding)
        self.samples = Batches(open_training(plan), *sizes, within=within)
        validation = open_validation(plan)
        self.validation = None if validation is None else Batches(validation, *sizes, within=within)

    def run(self) -> Result:
        plan, steps, checkpoints = self.plan, self.plan.experiment.train.steps, self.checkpoints
        resumed = checkpoints.resume()
        if resumed is not None:
            self.step, self.consumed = resumed.step, resumed.consumed_samples
        elif plan.experiment.model.init != "native":
            models.begin(self.built, plan, weights(plan.experiment.model))
        if self.session.rank == 0:
            self.session.emit(
                RunStarted(
                    name=plan.experiment.name,
                    attempt=self.session.attempt,
                    world_size=plan.topology.world_size,
                    device=plan.experiment.hardware.name,
                    parameters=plan.parameters,
                    steps=steps,
                    resumed_from=None if resumed is None else resumed.step,
                )
            )
        if resumed is None:
            self._validate()
        stopped = False
        while self.step < steps and not stopped:
            self.step += 1
            stopped = self._train_step()
            checkpoints.poll()
            if checkpoints.due(self.step) and self.step < steps and not stopped:
                checkpoints.save_step(self.step, self.consumed, wait=False)
            if not stopped and (self.step == steps or self.step % plan.experiment.eval.interval == 0):
                self._validate()
        checkpoints.finish()
        if checkpoints.saved_step != self.step:
            checkpoints.save_step(self.step, self.consumed, wait=True)
        checkpoints.shut_down()
        return Result("stopped" if self.step < steps else "complete", self.step)

    def _train_step(self) -> bool:
        began, train = time.perf_counter(), self.plan.experiment.train
        batch = self.samples.read(self.consumed)
        with jax.set_mesh(self.built.mesh), logical_axis_rules(self.built.config.logical_axis_rules):
            self.built.state, metrics = self.built.train(self.built.state, batch)
        scalars = {name: float(metrics["scalar"][name]) for name in ("learning/lm_loss", "learning/raw_grad_norm")}
        loss, norm = scalars["learning/lm_loss"], scalars["learning/raw_grad_norm"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"the loss is {loss}, the gradient norm {norm}", where=f"step {self.step}")
        self.consumed += train.global_batch_size
        if self.session.rank == 0:
            tokens, seconds = train.global_batch_size * train.seq_length, time.perf_counter() - began
            rate = learning_rate(self.step - 1, self.plan.experiment.optimizer, self.plan.decay_steps)
            self.session.emit(
                StepDone(
                    step=self.step,
                    loss=loss,
                    grad_norm=norm,
                    lr=rate,
                    tokens=tokens,
                    seconds=seconds,
                    memory_bytes=_memory(),
                    mfu=self._mfu(tokens / seconds),
                )
            )
        return self._anyone(self.session.stop_requested())

    def _mfu(self, tokens_per_second: float) -> float | None:
        hardware = self.plan.experiment.hardware
        peak = hardware.peak_tflops.get(self.plan.experiment.precision)
        if peak is None:
            return None
        return self.plan.flops_per_token * tokens_per_second / (peak * 1e12 * self.plan.topology.world_size)

    def _anyone(self, value: bool) -> bool:
        if self.session.world_size == 1:
            return value
        return bool(np.any(multihost_utils.process_allgather(np.array(value))))

    def _validate(self) -> None:
        if self.validation is None:
            return
        began, size = time.perf_counter(), self.plan.experiment.train.global_batch_size
        there = self.validation.reader.length
        assert there is not None
        loss = tokens = 0.0
        rules = self.built.config.logical_axis_rules_for_eval or self.built.config.logical_axis_rules
        for index in range(min(self.plan.experiment.eval.steps, -(-there // size))):
            batch = self.validation.read(index * size, min(size, there - index * size))
            with jax.set_mesh(self.built.mesh), logical_axis_rules(rules):
                scalars = self.built.evaluate(self.built.state, batch)["scalar"]
            loss += float(scalars["evaluation/total_loss"])
            tokens += float(scalars["evaluation/total_weights"])
        if self.session.rank == 0:
            seconds = time.perf_counter() - began
            self.session.emit(EvalDone(step=self.step, loss=loss / tokens, tokens=round(tokens), seconds=seconds))


def _memory() -> int:
    """Peak bytes of the fullest device, or of this process where devices do not say."""
    from primus.backends.pytorch.devices import peak_resident_bytes

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else peak_resident_bytes()
