"""Megatron's parts on one rank: its model, schedules, gradient buffers and optimizers, for the loop of all engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

from primus.backends.base import Session
from primus.backends.megatron import model as models
from primus.backends.megatron.attention import on_this_rank, within_documents
from primus.backends.megatron.checkpoint import Checkpoints
from primus.backends.megatron.layout import weights
from primus.backends.megatron.optimizer import Optimizer
from primus.backends.megatron.platform import Platform, shorten_timeouts
from primus.backends.pytorch import start
from primus.backends.pytorch.samples import Microbatch, TrainingSamples
from primus.config.units import collective_seconds
from primus.data.reader import IGNORED, open_training
from primus.plan.plan import Plan


class Trainer:
    """One rank of a run, as ``pytorch.steps.TorchEngine``. Builds model and optimizer."""

    title = "Megatron"

    def __init__(self, plan: Plan, session: Session, platform: Platform) -> None:
        self.plan, self.device = plan, platform.device
        MTPLossLoggingHelper.tracker.clear()  # of an earlier run in this process
        self.config = models.transformer_config(plan)
        ddp = DistributedDataParallelConfig(**plan.native["ddp"])
        with platform.building():
            self.chunks = [
                DistributedDataParallel(self.config, ddp, chunk, disable_bucketing=number > 0)
                for number, chunk in enumerate(models.build(plan, self.config, platform.device))
            ]
            self.optimizer = Optimizer(plan, self.chunks)
        self.checkpoints = Checkpoints(plan, session, self.optimizer)
        self._hook(ddp)
        train, topology = plan.experiment.train, plan.topology
        self.samples = TrainingSamples(
            open_training(plan),
            train.global_batch_size,
            topology.micro_batch_size,
            dp_rank=mpu.get_data_parallel_rank(),
            dp_size=topology.data_parallel,
        )

    @property
    def loss_counts(self) -> bool:
        return bool(mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0)

    def _hook(self, ddp: DistributedDataParallelConfig) -> None:
        """What Megatron's schedules call back."""
        config, one = self.config, len(self.chunks) == 1
        config.finalize_model_grads_func = lambda chunks, tokens=None, **options: finalize_model_grads(
            chunks, **options
        )
        if ddp.overlap_grad_reduce:
            config.no_sync_func = self.chunks[0].no_sync if one else [chunk.no_sync for chunk in self.chunks]
        if ddp.overlap_param_gather and ddp.align_param_gather:
            syncs = [chunk.start_param_sync for chunk in self.chunks]
            config.param_sync_func = syncs[0] if one else syncs

    def start(self) -> None:
        model, seed = self.plan.experiment.model, self.plan.experiment.train.seed
        if model.init == "native":
            for chunk in self.chunks:
                chunk.broadcast_params()
            return
        expected = weights(model, self.config.mtp_num_layers or 0)
        if model.init == "random":
            start.random_start(self.optimizer.weights(), expected, model, seed)
        else:
            start.load_huggingface(self.optimizer.weights(), expected, model, Path(model.init))
        self.optimizer.publish()

    def training(self, step: int) -> AbstractContextManager[object]:
        return nullcontext()

    def gradients(self, step: int, microbatches: list[Microbatch]) -> tuple[torch.Tensor, torch.Tensor]:
        self.optimizer.zero_grad()
        self.optimizer.remember_buffers()
        tokens = self._valid_tokens(microbatches)
        self.config.grad_scale_func = lambda loss: loss / tokens
        loss = self.forward_backward(microbatches) / tokens
        return loss, torch.tensor(self.optimizer.gradient_norm(), dtype=torch.float64, device=self.device)

    def update(self, lr: float, norm: float) -> None:
        self.optimizer.step(lr, norm)

    def discard(self) -> None:
        """Gradients are emptied before the next ones are made, but making them has moved the biases of experts."""
        self.optimizer.restore_buffers()

    @contextmanager
    def validating(self) -> Iterator[None]:
        for chunk in self.chunks:
            chunk.eval()
        yield
        for chunk in self.chunks:
            chunk.train()

    def validation_loss(self, microbatches: list[Microbatch]) -> float:
        return float(self.forward_backward(microbatches, backward=False))

    def close(self) -> None:
        self.checkpoints.shut_down()

    def shorten_timeouts(self) -> None:
        shorten_timeouts(collective_seconds(self.plan.experiment.resilience.hang_timeout))

    def _valid_tokens(self, microbatches: list[Microbatch]) -> int:
        """Unmasked targets of the global batch."""
        local = sum(int((labels != IGNORED).sum()) for _, labels in microbatches)
        if self.plan.topology.data_parallel == 1:
            return local
        total = torch.tensor(local, device=self.device)
        dist.all_reduce(total, group=mpu.get_data_parallel_group())
        return int(total)

    def forward_backward(self, microbatches: list[Microbatch], *, backward: bool = True) -> torch.Tensor:
        """Run the pipeline schedule. Returns the loss summed over this rank's tokens, 0 but on the last stage."""
        topology = self.plan.topology
        one = len(self.chunks) == 1
        iterators = [iter(microbatches) for _ in self.chunks]
        outputs = get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=iterators[0] if one else iterators,
            model=self.chunks[0] if one else self.chunks,
            num_microbatches=len(microbatches),
            seq_length=self.plan.experiment.train.seq_length,
            micro_batch_size=topology.micro_batch_size,
            forward_only=not backward,
        )
        losses = [output["loss"] for output in outputs]
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)

    def _forward_step(
        self, iterator: Iterator[Microbatch], chunk: Any
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]]:
        """Megatron's schedules call it for each microbatch and chunk."""
        inputs, labels = next(iterator)
        split = partial(on_this_rank, ranks=self.plan.topology.context, rank=mpu.get_context_parallel_rank())
        tokens, positions, targets = (
            split(tensor.to(self.device)) for tensor in (inputs["input"], inputs["positions"], labels)
        )
        valid = targets != IGNORED
        within = self.plan.data.document_attention == "within"
        mask = within_documents(inputs["positions"].to(self.device)) if within else None
        output = chunk(tokens, positions, mask, labels=targets.where(valid, 0), loss_mask=valid.float())

        def loss_of(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            total = (losses.float() * valid).sum()
            return total, valid.sum().int(), {"loss": total.detach().clone()}

        return output, loss_of
