"""Loss on the validation split."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torchtitan.components.loss import IGNORE_INDEX

from primus.backends.pytorch.meter import plain
from primus.backends.pytorch.samples import ValidationSamples
from primus.events.types import EvalDone

if TYPE_CHECKING:
    from primus.backends.torchtitan.trainer import PrimusTrainer


class Evaluation:
    """Mean negative log-likelihood over the unmasked tokens of the first ``eval.steps`` global batches of the split."""

    def __init__(self, trainer: PrimusTrainer, loader: ValidationSamples) -> None:
        self._trainer, self._loader = trainer, loader

    @classmethod
    def open(cls, trainer: PrimusTrainer) -> Evaluation | None:
        """None when the experiment has no validation split."""
        dims, plan = trainer.parallel_dims, trainer.plan
        rank = dims.get_mesh("batch").get_local_rank() if dims.dp_enabled else 0
        loader = ValidationSamples.open(plan, rank, plan.topology.micro_batch_size)
        return None if loader is None else cls(trainer, loader)

    @torch.no_grad()
    def run(self, step: int) -> None:
        """Evaluate on all ranks and report."""
        trainer, began = self._trainer, time.perf_counter()
        for part in trainer.model_parts:
            part.eval()
        loss = torch.zeros((), dtype=torch.float64, device=trainer.device)
        tokens = 0
        for index in range(self._loader.batches):
            microbatches = list(self._loader.step(index))
            tokens += sum(int((labels != IGNORE_INDEX).sum()) for _, labels in microbatches)
            for inputs, labels in trainer.passes(microbatches):
                loss += self._pipeline(inputs, labels) if isinstance(labels, list) else self._forward(inputs, labels)
        for part in trainer.model_parts:
            part.train()
        # context-parallel ranks share sequences: each has a part of the loss, all of them count the same targets
        total, counted = trainer.meter.total([loss.item(), tokens / trainer.parallel_dims.cp])
        if trainer.meter.reports:
            seconds = time.perf_counter() - began
            trainer.session.emit(EvalDone(step=step, loss=total / counted, tokens=round(counted), seconds=seconds))

    def _forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        trainer = self._trainer
        tokens, targets, kwargs = trainer.post_dataloading_process(inputs, labels)
        with trainer.train_context():
            loss, _ = trainer.loss_fn(trainer.model_parts[0](tokens, **kwargs), targets)
        return plain(loss)

    def _pipeline(self, inputs: list[dict[str, torch.Tensor]], labels: list[torch.Tensor]) -> torch.Tensor:
        return self._trainer.run_pipeline(self._trainer.pp_schedule.eval, inputs, labels)
