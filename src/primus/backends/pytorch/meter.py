"""What a step measures, agreed across ranks with one small message."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from primus.backends.base import Session
from primus.backends.loop import Readings
from primus.backends.machine import peak_resident_bytes


def plain(loss: torch.Tensor) -> torch.Tensor:
    """A loss without its graph. Tensor parallelism with a chunked loss gives a DTensor that every rank holds whole."""
    loss = loss.detach()
    return loss.to_local() if isinstance(loss, DTensor) else loss


class Meter:
    """counts: this rank's loss is part of the global loss (it is on the last pipeline stage and first among its
    tensor-parallel ranks, which all hold the same)."""

    def __init__(self, session: Session, device: torch.device, counts: bool) -> None:
        self._session, self._device, self._counts = session, device, counts

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
