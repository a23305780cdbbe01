"""What a step measures, agreed across ranks with one small message."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from primus.backends.base import Session
from primus.backends.pytorch.devices import peak_resident_bytes
from primus.events.types import StepDone
from primus.plan.plan import Plan


def plain(loss: torch.Tensor) -> torch.Tensor:
    """A loss without its graph. Tensor parallelism with a chunked loss gives a DTensor that every rank holds whole."""
    loss = loss.detach()
    return loss.to_local() if isinstance(loss, DTensor) else loss


@dataclass(frozen=True)
class Readings:
    """One step, the same on every rank. unfinite_ranks: ranks whose own part of the loss is NaN or infinite;
    memory_bytes: of the fullest device; stop: some rank was asked to stop."""

    loss: float
    grad_norm: float
    memory_bytes: int
    unfinite_ranks: tuple[int, ...]
    stop: bool


class Meter:
    """Measures steps and reports them. counts: this rank's loss is part of the global loss (it is on the last pipeline
    stage and first among its tensor-parallel ranks, which all hold the same)."""

    def __init__(self, plan: Plan, session: Session, device: torch.device, counts: bool) -> None:
        self._plan, self._session, self._device, self._counts = plan, session, device, counts
        self.reports = session.rank == 0
        """Whether this rank emits the steps. Every rank knows the figures; the sinks listen to rank 0."""
        peak = plan.experiment.hardware.peak_tflops.get(plan.experiment.precision)
        self._flops = None if peak is None else peak * 1e12 * session.world_size
        train = plan.experiment.train
        self._tokens = train.global_batch_size * train.seq_length

    def read(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> Readings:
        """loss: this rank's share of the global mean loss; grad_norm: global already. Waits for the device."""
        local, norm = torch.stack([loss.double(), grad_norm.double()]).tolist()
        mine = [local if self._counts else 0.0, float(self._peak_memory()), float(self._session.stop_requested())]
        world = self._everyone(mine)
        return Readings(
            loss=math.fsum(row[0] for row in world)
            if all(math.isfinite(row[0]) for row in world)
            else sum(r[0] for r in world),
            grad_norm=norm,
            memory_bytes=int(max(row[1] for row in world)),
            unfinite_ranks=tuple(rank for rank, row in enumerate(world) if not math.isfinite(row[0])),
            stop=any(row[2] for row in world),
        )

    def report(self, step: int, readings: Readings, lr: float, seconds: float) -> None:
        if not self.reports:
            return
        mfu = None if self._flops is None else self._plan.flops_per_token * self._tokens / seconds / self._flops
        self._session.emit(
            StepDone(
                step=step,
                loss=readings.loss,
                grad_norm=readings.grad_norm,
                lr=lr,
                tokens=self._tokens,
                seconds=seconds,
                memory_bytes=readings.memory_bytes,
                mfu=mfu,
            )
        )

    def total(self, values: list[float]) -> list[float]:
        """Sums over the ranks whose loss counts."""
        world = self._everyone(values if self._counts else [0.0] * len(values))
        return [math.fsum(column) for column in zip(*world, strict=True)]

    def _everyone(self, values: list[float]) -> list[list[float]]:
        """`values` of every rank, in rank order."""
        if self._session.world_size == 1:
            return [values]
        mine = torch.tensor(values, dtype=torch.float64, device=self._device)
        world = mine.new_empty(self._session.world_size * len(values))
        dist.all_gather_into_tensor(world, mine)
        rows: list[list[float]] = world.view(-1, len(values)).tolist()
        return rows

    def _peak_memory(self) -> int:
        if self._device.type == "cpu":
            return peak_resident_bytes()
        return int(torch.cuda.max_memory_reserved(self._device))
