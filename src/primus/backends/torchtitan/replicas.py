"""A rank's link to the ranks at its place in the other replica groups, by torchft.

Before every step the groups that are there form a quorum. One that has fallen behind, because it was started anew or
missed a step, is given a peer's state first. A step counts for a group when nothing failed on the way; otherwise it is
made again with those who are left.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torchft import Manager, ProcessGroupGloo, ProcessGroupNCCL
from torchft.checkpointing import HTTPTransport

from primus.backends.base import Session
from primus.backends.loop import Readings
from primus.config.units import least_seconds
from primus.errors import TrainingError
from primus.plan.plan import Plan

State = dict[str, torch.Tensor]
HOST = "localhost"
"""Where the groups reach each other: they are on one node."""
BUCKET_BYTES = 32 << 20
"""Gradients that travel together; as many are copied once more."""
COLUMNS = 3
"""Figures that a rank can tell in one round."""
START, STEP, MADE, EVALUATED, ENDED = range(5)
"""Kinds of rounds: before training; a step begins; its gradients are made; validation; after training."""
FUTILE = 5
"""Rounds in a row that may fail before the group gives up and is started again."""


@dataclass(frozen=True)
class Progress:
    """Where training stands: what a group that joins is told. step: updates made; consumed: samples; begun: the first
    step is under way; stopping: somebody was asked to stop; short: first of the steps, up to the last, that were made
    without all groups, 0 when they are there."""

    step: int
    consumed: int
    begun: bool = False
    stopping: bool = False
    short: int = 0


class Told(NamedTuple):
    """What one group's rank says in a round: of which kind the round is for it, and its figures."""

    kind: int
    values: tuple[float, ...]


class Replicas:
    """present: groups that took part in the last round, by number. part, parts: which of the groups this one is in the
    quorum, and how many these are. healed: the state was given by a peer when the quorum was formed."""

    def __init__(self, plan: Plan, session: Session, device: torch.device) -> None:
        self.groups, self.group = plan.topology.replica_groups, session.group
        self.present: tuple[int, ...] = ()
        self.part, self.parts, self.healed = 0, 1, False
        self._session, self._device = session, device
        self._timeout = timedelta(seconds=least_seconds(plan.experiment.resilience.hang_timeout) / 2)
        self._manager: Manager | None = None
        self._futile = 0

    @property
    def leads(self) -> bool:
        """Whether this group speaks and saves for all."""
        return self.part == 0

    def connect(self, progress: Progress, state: Callable[[], State], load: Callable[[State, int], None]) -> None:
        """Tell the lighthouse that this group is there. state: this rank's tensors; load: takes a
        peer's, after so many steps."""
        self._progress, self._state, self._load = progress, state, load
        kind = ProcessGroupGloo if self._device.type == "cpu" else ProcessGroupNCCL
        self._manager = Manager(
            pg=kind(timeout=self._timeout),
            load_state_dict=self._take,
            state_dict=self._give,
            min_replica_size=1,
            use_async_quorum=False,  # who is there decides how the batch is divided
            init_sync=False,  # all start alike
            timeout=self._timeout,
            quorum_timeout=self._timeout,
            connect_timeout=self._timeout,
            rank=self._session.rank,
            world_size=self._session.world_size,
            store_addr=HOST,
            replica_id=f"group-{self.group:05d}",  # their order in a quorum
            hostname=HOST,
            checkpoint_transport=Transport(self._timeout, num_chunks=0),
        )
        self.set_step(progress.step)

    def set_step(self, step: int) -> None:
        """A checkpoint of `step` was loaded."""
        assert self._manager is not None
        self._manager.load_state_dict({"step": step, "batches_committed": 0})

    def join(self, progress: Progress) -> Progress:
        """Form the quorum of the next round. Returns where training stands; when ``healed``, a peer knew better."""
        assert self._manager is not None
        self._progress, self.healed = progress, False
        self._manager.start_quorum()
        part = self._manager.participating_rank()
        self.part, self.parts = part or 0, self._manager.num_participants()
        return self._progress

    def _give(self) -> dict[str, Any]:
        return {"progress": astuple(self._progress), "tensors": self._state()}

    def _take(self, given: dict[str, Any]) -> None:
        self._progress, self.healed = Progress(*given["progress"]), True
        self._load(given["tensors"], self._progress.step)

    def tell(self, kind: int, *values: float) -> dict[int, Told] | None:
        """Exchange figures with every group of the quorum. None when that failed on this rank: the round is lost."""
        assert self._manager is not None
        mine = (1.0, float(kind), *values)
        rows = torch.zeros(self.groups, 2 + COLUMNS, dtype=torch.float64, device=self._device)
        rows[self.group, : len(mine)] = torch.tensor(mine, dtype=torch.float64)
        self._manager.allreduce(rows, reduce_op=dist.ReduceOp.SUM).wait()
        if self._manager.errored():
            return None
        told = {group: Told(int(row[1]), tuple(row[2:])) for group, row in enumerate(rows.tolist()) if row[0]}
        self.present = tuple(told)
        if len(told) != self.parts or {one.kind for one in told.values()} != {kind}:
            self._manager.report_error(RuntimeError(f"the groups are not at the same place: {told}"))
            return None
        return told

    def confer(self, kind: int, *values: float) -> dict[int, Told] | None:
        """``tell`` outside of a step: failed for one rank of this group, it has failed for all."""
        told = self.tell(kind, *values)
        if self._session.world_size > 1:
            fine = torch.tensor(float(told is not None), device=self._device)
            dist.all_reduce(fine, dist.ReduceOp.MIN)
            told = told if fine.item() else None
        if told is None:
            self.commit()  # which fails, so that the next quorum connects anew
        return told

    def total_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` of all groups, int64 []; on a failure those of this group, for a step that will not count."""
        told = self.tell(STEP, float(tokens))
        return tokens if told is None else tokens.new_tensor(round(sum(one.values[0] for one in told.values())))

    def total(self, readings: Readings) -> Readings | None:
        """`readings` of a step over all groups; None on a failure."""
        told = self.tell(MADE, readings.loss, float(readings.memory_bytes), float(readings.stop))
        if told is None:
            return None
        losses, memory, stops = zip(*(one.values for one in told.values()), strict=True)
        return replace(
            readings,
            loss=math.fsum(losses) if all(map(math.isfinite, losses)) else sum(losses),
            memory_bytes=int(max(memory)),
            stop=any(stops),
        )

    @torch.no_grad()
    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace every tensor by its sum over the quorum's groups. What comes of a failure is seen in ``commit``."""
        assert self._manager is not None
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._manager.allreduce(flat, reduce_op=dist.ReduceOp.SUM).wait()
            for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def commit(self) -> bool:
        """Whether nothing has failed in this round on any rank of this group."""
        assert self._manager is not None
        if self._manager.should_commit():
            self._futile = 0
            return True
        self._futile += 1
        if self._futile > FUTILE:
            raise TrainingError(
                f"{self._futile} rounds of the replica groups failed one after another: {self._manager.errored()}",
                where=f"replica group {self.group}",
                retryable=True,
            )
        return False

    def close(self) -> None:
        if self._manager is not None:
            self._manager.shutdown(wait=False)


class Transport(HTTPTransport[dict[str, Any]]):
    """torchft's, at an address that needs no name service."""

    def address(self) -> str:
        return super().address().replace(f"//{socket.gethostname()}:", f"//{HOST}:")


def _buckets(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """`tensors` in order, in lists of one dtype and about BUCKET_BYTES."""
    found: list[list[torch.Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if not found or size > room or found[-1][0].dtype != tensor.dtype:
            found.append([])
            room = BUCKET_BYTES
        found[-1].append(tensor)
        room -= size
    return found
