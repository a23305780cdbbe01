"""The training loop: everything a backend owes to the numerics contract, the events and the checkpoints."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from primus.backends.base import Result, Session
from primus.checkpoints import store
from primus.data.reader import Batch, open_training, open_validation
from primus.errors import AnomalyError, CheckpointError
from primus.events.types import CheckpointSaved, EvalDone, Notice, RunStarted, StepDone
from primus.numerics.init import normal
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan
from primus_plain_torch.model import Llama

STATE = "state.pt"


class Trainer:
    def __init__(self, plan: Plan, session: Session) -> None:
        torch.set_num_threads(plan.native["threads"])
        self.plan, self.session, self.experiment = plan, session, plan.experiment
        self.settings, self.optimizer_settings = self.experiment.train, self.experiment.optimizer
        self.architecture = self.experiment.model.model_dump(mode="json")
        self.reader, self.validation = open_training(plan), open_validation(plan)
        self.step = 0
        self.saved_step: int | None = None
        self.model = Llama(self.experiment.model)
        matrices = [weight for weight in self.model.parameters() if weight.ndim >= 2]
        norms = [weight for weight in self.model.parameters() if weight.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.optimizer_settings.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=self.optimizer_settings.betas, eps=self.optimizer_settings.eps)

    def run(self) -> Result:
        self.start()
        stopped = False
        while self.step < self.settings.steps and not stopped:
            self.train_step()
            stopped = self.session.stop_requested()
            last = self.step == self.settings.steps
            if self.step % self.experiment.eval.interval == 0 or last:
                self.evaluate()
            if (
                last
                or stopped
                or (self.experiment.checkpoint.interval and self.step % self.experiment.checkpoint.interval == 0)
            ):
                self.save()
        return Result("complete" if self.step == self.settings.steps else "stopped", self.step)

    def start(self) -> None:
        """Resume from the newest intact checkpoint, or draw the contract's random start."""
        if self.experiment.checkpoint.resume == "never":
            store.set_aside(self.session.run_directory, 0)
        info, problems = store.newest_intact(self.session.run_directory)
        for problem in problems:
            self.session.emit(Notice(message=f"a damaged checkpoint is skipped: {problem}"))
        if info is None:
            for name, weight in self.model.named_parameters():
                drawn = torch.ones(weight.shape)
                if weight.ndim >= 2:
                    values = normal(self.settings.seed, name, 0, weight.numel()) * np.float32(
                        self.experiment.model.init_std
                    )
                    drawn = torch.from_numpy(values).view_as(weight)
                weight.data.copy_(drawn)
        else:
            self.load(info)
        self.session.emit(
            RunStarted(
                name=self.experiment.name,
                attempt=self.session.attempt,
                world_size=1,
                device=self.experiment.hardware.name,
                parameters=self.plan.parameters,
                steps=self.settings.steps,
                resumed_from=info.step if info else None,
            )
        )

    def train_step(self) -> None:
        began = time.perf_counter()
        lr = learning_rate(self.step, self.optimizer_settings, self.plan.decay_steps)
        batch = self.reader.read(self.step * self.settings.global_batch_size, self.settings.global_batch_size)
        self.optimizer.zero_grad()
        loss = self.loss(batch, backward=True)
        limit = self.optimizer_settings.clip_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise AnomalyError(
                f"loss {loss}, gradient norm {norm}; no weight was updated", where=f"step {self.step + 1}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.session.emit(
            StepDone(
                step=self.step,
                loss=loss,
                grad_norm=norm,
                lr=lr,
                tokens=batch.inputs.size,
                seconds=time.perf_counter() - began,
                memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
        )

    def loss(self, batch: Batch, *, backward: bool = False) -> float:
        """Mean over the unmasked targets of the whole batch, one micro batch at a time."""
        inputs, labels = torch.tensor(batch.inputs), torch.tensor(batch.labels)
        targets = int((labels != -100).sum())
        total = 0.0
        size = self.settings.micro_batch_size
        for first in range(0, len(inputs), size):
            x, y = inputs[first : first + size], labels[first : first + size]
            loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten(), reduction="sum") / max(1, targets)
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def evaluate(self) -> None:
        if self.validation is None:
            return
        began, size = time.perf_counter(), self.settings.global_batch_size
        available = (self.validation.length or 0) // size
        batches = [self.validation.read(n * size, size) for n in range(min(self.experiment.eval.steps, available))]
        if not batches:
            return
        with torch.no_grad():
            weights = [int((batch.labels != -100).sum()) for batch in batches]
            loss = sum(self.loss(batch) * weight for batch, weight in zip(batches, weights, strict=True)) / max(
                1, sum(weights)
            )
        seconds = time.perf_counter() - began
        self.session.emit(EvalDone(step=self.step, loss=loss, tokens=sum(weights), seconds=seconds))

    def save(self) -> None:
        if self.saved_step == self.step:
            return
        began = time.perf_counter()
        directory = store.begin(self.session.run_directory, self.step)
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, directory / STATE)
        consumed = self.step * self.settings.global_batch_size
        info = store.seal(directory, step=self.step, consumed_samples=consumed, model=self.architecture)
        self.saved_step = self.step
        seconds = time.perf_counter() - began
        self.session.emit(
            CheckpointSaved(
                step=self.step, path=str(directory), bytes=info.bytes, seconds=seconds, blocked_seconds=seconds
            )
        )
        if self.experiment.checkpoint.keep:
            store.prune(self.session.run_directory, self.experiment.checkpoint.keep)

    def load(self, info: store.CheckpointInfo) -> None:
        path: Path = info.directory / STATE
        if problems := store.compare_model(info, self.architecture):
            raise CheckpointError(problems=problems)
        if store.hash_file(path) != info.file(STATE).digest:
            raise CheckpointError(
                "the content is not what was written", where=str(path), remedy="remove this checkpoint"
            )
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved_step = info.step
