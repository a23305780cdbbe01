"""Steps and validation of a PyTorch engine, made of the parts that engines differ in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from primus.backends.base import Session
from primus.backends.checkpointing import RunCheckpoints
from primus.backends.loop import Check, Readings
from primus.backends.pytorch.meter import Meter
from primus.backends.pytorch.profiling import TorchTracer
from primus.backends.pytorch.samples import Microbatch, TrainingSamples, ValidationSamples
from primus.data.reader import IGNORED
from primus.plan.plan import Plan


class TorchEngine(Protocol):
    """Model and optimizer on one rank; what it shares with ``loop.Engine`` means the same."""

    title: str
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

    def start(self) -> None: ...

    def training(self, step: int) -> AbstractContextManager[object]: ...

    def gradients(self, step: int, microbatches: list[Microbatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the gradients of a step. Returns this rank's share of the global mean loss and the norm of the whole
        model's gradient before it is clipped, both []; the norm is the same on every rank."""
        ...

    def update(self, lr: float, norm: float) -> None:
        """Change the weights with the gradients, whose norm is `norm`."""
        ...

    def discard(self) -> None:
        """Leave everything as it was before ``gradients``: these are not used."""
        ...

    def validating(self) -> AbstractContextManager[object]:
        """Put the model into evaluation."""
        ...

    def validation_loss(self, microbatches: list[Microbatch]) -> float:
        """Negative log-likelihood summed over this rank's unmasked targets."""
        ...

    def shorten_timeouts(self) -> None: ...

    def close(self) -> None: ...


class Steps:
    """One rank of a PyTorch engine, as ``loop.Engine``."""

    def __init__(self, plan: Plan, session: Session, engine: TorchEngine) -> None:
        self._engine, self._context = engine, plan.topology.context
        self._meter = Meter(session, engine.device, engine.loss_counts)
        self._validation = ValidationSamples.open(plan, engine.samples.dp_rank, plan.topology.micro_batch_size)
        self.title, self.tracer = engine.title, TorchTracer()
        self.start, self.training = engine.start, engine.training
        self.shorten_timeouts, self.close = engine.shorten_timeouts, engine.close

    @property
    def checkpoints(self) -> RunCheckpoints:
        return self._engine.checkpoints

    def step(self, step: int, consumed: int, lr: float, check: Check) -> Readings:
        microbatches = list(self._engine.samples.step(consumed))
        readings = self._meter.read(*self._engine.gradients(step, microbatches))
        if check(readings):
            self.checkpoints.maybe_wait_for_staging()
            self._engine.update(lr, readings.grad_norm)
        else:
            self._engine.discard()
        return readings

    @torch.no_grad()
    def validation(self) -> tuple[float, float] | None:
        if self._validation is None:
            return None
        loss, tokens = 0.0, 0
        with self._engine.validating():
            for index in range(self._validation.batches):
                microbatches = list(self._validation.step(index))
                tokens += sum(int((labels != IGNORED).sum()) for _, labels in microbatches)
                loss += self._engine.validation_loss(microbatches)
        # context-parallel ranks share sequences: each has a part of the loss, all of them count the same targets
        total, counted = self._meter.total([loss, tokens / self._context])
        return total, counted
