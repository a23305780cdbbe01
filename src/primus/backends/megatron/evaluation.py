"""Loss on the validation split."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state as mpu

from primus.backends.pytorch.samples import ValidationSamples
from primus.data.reader import IGNORED
from primus.events.types import EvalDone

if TYPE_CHECKING:
    from primus.backends.megatron.trainer import Trainer


class Evaluation:
    """Mean negative log-likelihood over the unmasked tokens of the first ``eval.steps`` global batches of the split."""

    def __init__(self, trainer: Trainer, samples: ValidationSamples) -> None:
        self._trainer, self._samples = trainer, samples

    @classmethod
    def open(cls, trainer: Trainer) -> Evaluation | None:
        """None when the experiment has no validation split."""
        plan = trainer.plan
        samples = ValidationSamples.open(plan, mpu.get_data_parallel_rank(), plan.topology.micro_batch_size)
        return None if samples is None else cls(trainer, samples)

    @torch.no_grad()
    def run(self, step: int) -> None:
        """Evaluate on all ranks and report."""
        trainer, began = self._trainer, time.perf_counter()
        for chunk in trainer.chunks:
            chunk.eval()
        loss, tokens = 0.0, 0
        for index in range(self._samples.batches):
            microbatches = list(self._samples.step(index))
            tokens += sum(int((labels != IGNORED).sum()) for _, labels in microbatches)
            loss += float(trainer.forward_backward(microbatches, backward=False))
        for chunk in trainer.chunks:
            chunk.train()
        # context-parallel ranks share sequences: each has a part of the loss, all of them count the same targets
        total, counted = trainer.meter.total([loss, tokens / trainer.plan.topology.context])
        if trainer.meter.reports:
            seconds = time.perf_counter() - began
            trainer.session.emit(EvalDone(step=step, loss=total / counted, tokens=round(counted), seconds=seconds))
