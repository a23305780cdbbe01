"""Checkpoints in torch's distributed format, written by all ranks at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from primus.backends.base import Session
from primus.backends.checkpointing import RunCheckpoints, Stage, cause
from primus.backends.pytorch.staging import Staging
from primus.backends.pytorch.storage import HashingWriter
from primus.checkpoints.store import CheckpointFile, CheckpointInfo
from primus.errors import CheckpointError
from primus.plan.plan import Plan

T = TypeVar("T")


class TorchCheckpoints(RunCheckpoints):
    """An engine's subclass says what is saved and how it is restored."""

    def __init__(self, plan: Plan, session: Session) -> None:
        super().__init__(plan, session)
        # its own group: the background thread's messages must not mix with training's
        self._group = dist.new_group(backend="gloo")
        self._staging = Staging()

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Live tensors of the model and the optimizer, by name: plain, or of a kind that torch's distributed
        checkpoints can cut (``DTensor``, ``Pieces``)."""

    @abstractmethod
    def _restore(self, state: dict[str, Any], step: int) -> None:
        """`state`, which ``_state`` gave, has been filled from the checkpoint of `step`: put it to use."""

    def _prepare(self, *, background: bool) -> Stage:
        state = self._state()
        if background and not self._staging.overlaps:
            state = self._staging.copy(state)
        elif background:
            ready = self._staging.mark()
            return lambda: partial(self._write_files, self._staging.copy(state, ready))
        return lambda: partial(self._write_files, state)

    def _make_room(self) -> None:
        self._thread.submit(self._staging.allocate, self._state())

    def _write_files(self, state: dict[str, Any], directory: Path) -> dict[str, str]:
        writer = HashingWriter(directory)
        try:
            save(state, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(_first_failure(error)) from error
        return writer.digests

    def _read(self, info: CheckpointInfo) -> None:
        state = self._state()
        try:
            load(state, storage_reader=FileSystemReader(info.directory), process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(
                f"cannot be loaded: {_first_failure(error)}",
                where=str(info.directory),
                remedy="continue with the version of Primus that wrote it",
            ) from error
        self._restore(state, info.step)

    def _gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _from_first_rank(self, value: T) -> T:
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def _share(self, files: Sequence[CheckpointFile]) -> list[CheckpointFile]:
        """A rank's own files on itself, which at the same layout are those it loads."""
        return [file for file in files if _owner(file.path) % self.session.world_size == self.session.rank]


def _owner(path: str) -> int:
    """Rank that wrote a file (``__RANK_NUMBER.distcp``); 0 for what is everybody's."""
    rank = path.removeprefix("__").partition("_")[0]
    return int(rank) if path.startswith("__") and rank.isdigit() else 0


def _first_failure(error: CheckpointException) -> str:
    """What went wrong first, and on which rank."""
    rank, (first, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {cause(first)}"
