"""TorchTitan's trainer with Primus's loop: our samples, schedule, events, evaluation, checkpoints and ways to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.distributed import utils as dist_utils
from torchtitan.trainer import Trainer

from primus.backends.base import Result, Session
from primus.backends.pytorch.meter import Meter, plain
from primus.backends.pytorch.profiling import Profiling
from primus.backends.pytorch.samples import Microbatch
from primus.backends.pytorch.steps import announce, refuse_unfinite
from primus.backends.torchtitan.checkpoint import Checkpoints
from primus.backends.torchtitan.clipping import clip_gradients
from primus.backends.torchtitan.evaluation import Evaluation
from primus.backends.torchtitan.loader import SampleLoader
from primus.backends.torchtitan.optimizer import Optimizers, Schedule
from primus.backends.torchtitan.start import load_huggingface, random_start
from primus.events.types import Notice
from primus.plan.plan import Plan


class PrimusTrainer(Trainer):
    """One rank of a run. Its Config builds model, optimizer and meshes as TorchTitan does; ``train_run`` then starts
    or resumes, and trains to the last step or until a stop is asked for."""

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
    lr_schedulers: Schedule

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert config._plan is not None
        assert config._session is not None
        self.plan, self.session = config._plan, config._session
        if self.device.type == "cpu":
            # gloo has no scaled sum, which FSDP would use to divide gradients; the loss is divided already
            for module in (module for part in self.model_parts for module in part.modules()):
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)
        dims = self.parallel_dims
        last_stage = not dims.pp_enabled or self.pp_has_last_stage
        first_of_tensor = not dims.tp_enabled or dims.get_mesh("tp").get_local_rank() == 0
        self.meter = Meter(self.plan, self.session, self.device, last_stage and first_of_tensor)
        self.evaluation = Evaluation.open(self)
        self.profiling = Profiling(self.plan, self.session)

    @property
    def consumed_samples(self) -> int:
        """Samples of the training order used up so far, by all ranks together."""
        return self.dataloader.consumed

    def train_run(self) -> Result:
        """Train. Raises TrainingError when loss or gradient norm is not finite, before anything is updated."""
        experiment = self.plan.experiment
        resumed = self.checkpointer.resume()
        if resumed is None:
            self._start()
        else:
            self.step, self.dataloader.consumed = resumed.step, resumed.consumed_samples
        announce(self.plan, self.session, "TorchTitan", None if resumed is None else resumed.step)
        stopped = False
        if resumed is None:
            self._evaluate(always=True)
        first = self.step + 1
        with self.config.profiler.build(global_step=self.step, base_folder=self.config.dump_folder) as profiler:
            while self.should_continue_training() and not stopped:
                self.step += 1
                self.gc_handler.run(self.step)
                self.profiling.before(self.step)
                stopped = self._train_step()
                self.profiling.after(self.step)
                profiler.step()
                self.checkpointer.poll()
                if self.checkpointer.due(self.step) and self.should_continue_training() and not stopped:
                    self.checkpointer.save_step(self.step, self.consumed_samples, wait=False)
                if self.step == first:
                    self._shorten_timeouts()
                if not stopped:
                    self._evaluate(always=self.step == experiment.train.steps)
        self.checkpointer.finish()
        if self.checkpointer.saved_step != self.step:
            self.checkpointer.save_step(self.step, self.consumed_samples, wait=True)
        return Result("stopped" if self.should_continue_training() else "complete", self.step)

    def _start(self) -> None:
        model = self.plan.experiment.model
        if model.init == "random":
            random_start(self.model_parts, model, self.plan.experiment.train.seed)
        elif model.init != "native":
            load_huggingface(self.model_parts, model, Path(model.init))

    def _train_step(self) -> bool:
        """One optimizer step. Returns whether any rank was asked to stop, the same on all ranks."""
        began = time.perf_counter()
        lr = self.lr_schedulers.apply(self.step - 1)
        self.optimizers.zero_grad(set_to_none=self.config.training.disable_cuda_graphs)
        microbatches = list(self.dataloader.step(self.consumed_samples))
        tokens = self._valid_tokens(microbatches)
        losses = [
            plain(self.forward_backward_step(input_dict=inputs, labels=labels, global_valid_tokens=tokens)).clone()
            for inputs, labels in self.passes(microbatches)
        ]
        loss = torch.stack(losses).sum()
        grad_norm = clip_gradients(
            [parameter for part in self.model_parts for parameter in part.parameters()],
            self.config.training.max_norm,
            stage_ranks=self.session.world_size // self.parallel_dims.pp,
            device=self.device,
        )
        readings = self.meter.read(loss, grad_norm)
        refuse_unfinite(readings, self.step, self.checkpointer)
        self.checkpointer.maybe_wait_for_staging()
        self.optimizers.step()
        self.dataloader.consumed += self.plan.experiment.train.global_batch_size
        self.meter.report(self.step, readings, lr, time.perf_counter() - began)
        return readings.stop

    def _valid_tokens(self, microbatches: list[Microbatch]) -> torch.Tensor:
        """Unmasked targets of the global batch, int64 on the device; no host synchronisation."""
        local = sum((labels != IGNORE_INDEX).sum() for _, labels in microbatches)
        assert isinstance(local, torch.Tensor)
        local = local.to(self.device)
        if not self.parallel_dims.dp_enabled:
            return local
        return dist_utils.dist_sum_tensor(local, self.parallel_dims.get_mesh("batch"))

    def passes(self, microbatches: list[Microbatch]) -> Iterator[tuple[Any, Any]]:
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
        return self.run_pipeline(
            self.pp_schedule.step, input_dict_mbs, label_mbs, loss_kwargs={"global_valid_tokens": global_valid_tokens}
        )

    def run_pipeline(
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

    def _evaluate(self, *, always: bool) -> None:
        if self.evaluation is not None and (always or self.step % self.plan.experiment.eval.interval == 0):
            self.evaluation.run(self.step)

    def _shorten_timeouts(self) -> None:
        """The first step compiles and connects; from the second on a collective may take `resilience.hang_timeout`."""
        if self.session.world_size > 1:
            dist_utils.set_pg_timeouts(
                timeout=timedelta(seconds=self.config.comm.train_timeout_seconds), parallel_dims=self.parallel_dims
            )

    def notice(self, message: str) -> None:
        self.session.emit(Notice(message=message, step=self.step))
