"""TorchTitan's trainer on one rank, for the loop of all engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.distributed import utils as dist_utils
from torchtitan.trainer import Trainer

from primus.backends.base import Session
from primus.backends.pytorch.meter import plain
from primus.backends.pytorch.samples import Microbatch
from primus.backends.torchtitan.checkpoint import Checkpoints
from primus.backends.torchtitan.clipping import clip_gradients, own_gradient
from primus.backends.torchtitan.loader import SampleLoader
from primus.backends.torchtitan.optimizer import Optimizers
from primus.backends.torchtitan.start import load_huggingface, random_start
from primus.plan.plan import Plan

if TYPE_CHECKING:
    from primus.backends.torchtitan.replicas import Replicas


class PrimusTrainer(Trainer):
    """One rank of a run, as ``pytorch.steps.TorchEngine``. Its Config builds model, optimizer and meshes as TorchTitan
    does."""

    title = "TorchTitan"

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        _plan: Plan | None = None
        _session: Session | None = None

        def to_dict(self) -> dict[str, Any]:
            # a session holds locks and open files, which cannot be copied
            config = Trainer.Config.to_dict(replace(self, _plan=None, _session=None))
            return {name: value for name, value in config.items() if not name.startswith("_")}

    checkpointer: Checkpoints
    dataloader: SampleLoader
    optimizers: Optimizers

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert config._plan is not None
        assert config._session is not None
        self.plan, self.session = config._plan, config._session
        self.replicas: Replicas | None = None
        if self.plan.topology.replica_groups > 1:
            from primus.backends.torchtitan.replicas import Replicas

            self.replicas = Replicas(self.plan, self.session, self.device)
        if self.device.type == "cpu":
            # gloo has no scaled sum, which FSDP would use to divide gradients; the loss is divided already
            for module in (module for part in self.model_parts for module in part.modules()):
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)

    @property
    def samples(self) -> SampleLoader:
        return self.dataloader

    @property
    def checkpoints(self) -> Checkpoints:
        return self.checkpointer

    @property
    def loss_counts(self) -> bool:
        dims = self.parallel_dims
        last_stage = not dims.pp_enabled or self.pp_has_last_stage
        return last_stage and (not dims.tp_enabled or dims.get_mesh("tp").get_local_rank() == 0)

    def start(self) -> None:
        model = self.plan.experiment.model
        if model.init == "random":
            random_start(self.model_parts, model, self.plan.experiment.train.seed)
        elif model.init != "native":
            load_huggingface(self.model_parts, model, Path(model.init))

    @contextmanager
    def training(self, step: int) -> Iterator[None]:
        with self.config.profiler.build(global_step=step, base_folder=self.config.dump_folder) as profiler:
            self._profiler = profiler
            yield

    def gradients(self, step: int, microbatches: list[Microbatch]) -> tuple[torch.Tensor, torch.Tensor]:
        self.gc_handler.run(step)
        self.optimizers.zero_grad(set_to_none=self.config.training.disable_cuda_graphs)
        tokens = self._valid_tokens(microbatches)
        losses = [
            plain(self.forward_backward_step(input_dict=inputs, labels=labels, global_valid_tokens=tokens)).clone()
            for inputs, labels in self._passes(microbatches)
        ]
        parameters = [parameter for part in self.model_parts for parameter in part.parameters()]
        if self.replicas is not None:
            self.replicas.add_up([own_gradient(each)[0] for each in parameters if each.grad is not None])
        norm = clip_gradients(
            parameters,
            self.config.training.max_norm,
            stage_ranks=self.session.world_size // self.parallel_dims.pp,
            device=self.device,
        )
        return torch.stack(losses).sum(), norm

    def update(self, lr: float, norm: float) -> None:
        """The gradients are clipped already."""
        self.optimizers.set_lr(lr)
        self.optimizers.step()
        self._profiler.step()

    def discard(self) -> None:
        """Gradients are emptied before the next ones are made. What experts were used for moves their biases later."""
        for part in self.model_parts:
            for name, buffer in part.named_buffers():
                if name.endswith("tokens_per_expert_E"):
                    buffer.zero_()

    @contextmanager
    def validating(self) -> Iterator[None]:
        for part in self.model_parts:
            part.eval()
        yield
        for part in self.model_parts:
            part.train()

    def validation_loss(self, microbatches: list[Microbatch]) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for inputs, labels in self._passes(microbatches):
            if self.parallel_dims.pp_enabled:
                total += self._run_pipeline(self.pp_schedule.eval, inputs, labels)
                continue
            tokens, targets, kwargs = self.post_dataloading_process(inputs, labels)
            with self.train_context():
                loss, _ = self.loss_fn(self.model_parts[0](tokens, **kwargs), targets)
            total += plain(loss)
        return total.item()

    def shorten_timeouts(self) -> None:
        dist_utils.set_pg_timeouts(
            timeout=timedelta(seconds=self.config.comm.train_timeout_seconds), parallel_dims=self.parallel_dims
        )

    def _valid_tokens(self, microbatches: list[Microbatch]) -> torch.Tensor:
        """Unmasked targets of the global batch, int64 on the device; no host synchronisation."""
        local = sum((labels != IGNORE_INDEX).sum() for _, labels in microbatches)
        assert isinstance(local, torch.Tensor)
        local = local.to(self.device)
        if self.parallel_dims.dp_enabled:
            local = dist_utils.dist_sum_tensor(local, self.parallel_dims.get_mesh("batch"))
        return local if self.replicas is None else self.replicas.total_tokens(local)

    def _passes(self, microbatches: list[Microbatch]) -> Iterator[tuple[Any, Any]]:
        """What each call of ``forward_backward_step`` gets: one microbatch, or with a pipeline all of them."""
        moved = (
            ({name: tensor.to(self.device) for name, tensor in inputs.items()}, labels.to(self.device))
            for inputs, labels in microbatches
        )
        if self.parallel_dims.pp_enabled:
            inputs, labels = zip(*moved, strict=True)
            yield list(inputs), list(labels)
        else:
            yield from moved

    def pp_forward_backward_step(
        self,
        *,
        input_dict_mbs: list[dict[str, torch.Tensor]],
        label_mbs: list[torch.Tensor],
        global_valid_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Run the pipeline schedule over the microbatches; the loss on the last stage, 0 elsewhere."""
        return self._run_pipeline(
            self.pp_schedule.step, input_dict_mbs, label_mbs, loss_kwargs={"global_valid_tokens": global_valid_tokens}
        )

    def _run_pipeline(
        self, run: Any, inputs: list[dict[str, torch.Tensor]], labels: list[torch.Tensor], **options: Any
    ) -> torch.Tensor:
        """Call a schedule's ``step`` or ``eval`` (`run`) as released torch versions want it: with the whole batch,
        which the schedule cuts into microbatches again. Returns the summed loss, 0 where there is none."""
        batch = {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}
        tokens, targets, kwargs = self.post_dataloading_process(batch, torch.cat(labels))
        losses: list[torch.Tensor] = []
        with self.train_context():
            run(
                *((tokens,) if self.pp_has_first_stage else ()),
                target=targets if self.pp_has_last_stage else None,
                losses=losses if self.pp_has_last_stage else None,
                return_outputs=False,
                **options,
                **kwargs,
            )
        return torch.stack(losses).sum().to(self.device) if losses else torch.zeros((), device=self.device)
