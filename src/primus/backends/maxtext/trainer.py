"""MaxText's model and compiled steps in one process, for the loop of all engines."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import jax
import numpy as np
from flax.core.spmd import logical_axis_rules
from jax.experimental import multihost_utils

from primus.backends.base import Session
from primus.backends.loop import Check, Readings
from primus.backends.machine import peak_resident_bytes
from primus.backends.maxtext import model as models
from primus.backends.maxtext.batches import Batches
from primus.backends.maxtext.checkpoint import Checkpoints
from primus.backends.maxtext.layout import weights
from primus.backends.maxtext.profiling import JaxTracer
from primus.data.reader import open_training, open_validation
from primus.plan.plan import Plan


class Trainer:
    """One process of a run, as ``loop.Engine``. Builds model and optimizer."""

    title = "MaxText"

    def __init__(self, plan: Plan, session: Session) -> None:
        self.plan, self.session = plan, session
        self.built = models.build(plan)
        self.checkpoints = Checkpoints(plan, session, self.built)
        self.tracer = JaxTracer()
        train = plan.experiment.train
        within = plan.data.document_attention == "within"
        sizes = (train.global_batch_size, train.seq_length, self.built.batch_sharding)
        self._samples = Batches(open_training(plan), *sizes, within=within)
        validation = open_validation(plan)
        # evaluation looks at as many samples at once as a pass of training has, and at no more of a batch
        sizes = (self.built.config.micro_batch_size_to_eval_on, *sizes[1:])
        self._validation = None if validation is None else Batches(validation, *sizes, within=within)

    def start(self) -> None:
        model = self.plan.experiment.model
        if model.init != "native":
            models.begin(self.built, self.plan, weights(model))

    def training(self, step: int) -> AbstractContextManager[object]:
        return nullcontext()

    def step(self, step: int, consumed: int, lr: float, check: Check) -> Readings:
        """The compiled step updates too, at the rate that the optimizer computes for this step; with ``skip_step`` not
        when its figures are not finite."""
        batch = self._samples.read(consumed)
        with self._compiled(self.built.config.logical_axis_rules):
            self.built.state, metrics = self.built.train(self.built.state, batch)
        loss, norm = jax.device_get([metrics["scalar"][f"learning/{name}"] for name in ("lm_loss", "raw_grad_norm")])
        world = self._everyone([float(_memory()), float(self.session.stop_requested())])
        readings = Readings(
            loss=float(loss),
            grad_norm=float(norm),
            memory_bytes=int(world[:, 0].max()),
            stop=bool(world[:, 1].any()),
            updated=self.plan.experiment.resilience.anomaly != "skip_step",
        )
        check(readings)
        return readings

    def validation(self) -> tuple[float, float] | None:
        if self._validation is None:
            return None
        config, experiment = self.built.config, self.plan.experiment
        size, there = config.micro_batch_size_to_eval_on, self._validation.reader.length
        assert there is not None
        loss = tokens = 0.0
        for first in range(0, min(experiment.eval.steps * experiment.train.global_batch_size, there), size):
            batch = self._validation.read(first, min(size, there - first))
            with self._compiled(config.logical_axis_rules_for_eval or config.logical_axis_rules):
                scalars = self.built.evaluate(self.built.state, batch)["scalar"]
            loss += float(scalars["evaluation/total_loss"])
            tokens += float(scalars["evaluation/total_weights"])
        return loss, tokens

    def shorten_timeouts(self) -> None:
        """Collectives are part of the compiled program and have no timeout of their own."""

    def close(self) -> None:
        self.checkpoints.shut_down()

    def _compiled(self, rules: Any) -> ExitStack:
        """In which MaxText's steps are compiled and called. rules: logical axis -> axes of the mesh."""
        contexts = ExitStack()
        contexts.enter_context(jax.set_mesh(self.built.mesh))
        contexts.enter_context(logical_axis_rules(rules))
        return contexts

    def _everyone(self, values: list[float]) -> np.ndarray[Any, Any]:
        """`values` of every process, float64 [processes, values]."""
        mine = np.array(values)
        if self.session.world_size == 1:
            return mine[None]
        # two halves: the devices would round a float64
        halves: np.ndarray[Any, Any] = multihost_utils.process_allgather(mine.view(np.uint32))
        return halves.view(np.float64)


def _memory() -> int:
    """Peak bytes of this process's fullest device, or of the process where devices do not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else peak_resident_bytes()
