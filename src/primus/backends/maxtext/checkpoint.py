"""The run's checkpoints: parameters and moments as orbax writes them, in ``state`` of the checkpoint's directory.

Arrays are whole there, whatever devices held them, so a run continues on another number of them.
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from primus.backends.base import Session
from primus.backends.checkpointing import RunCheckpoints, Stage
from primus.backends.maxtext.model import Built, held
from primus.backends.maxtext.saved import FOLDER
from primus.checkpoints.store import CheckpointInfo
from primus.errors import CheckpointError
from primus.plan.plan import Plan

T = TypeVar("T")

PATIENCE_MS = 600_000
"""How long a process may keep the others waiting for a word."""


class Checkpoints(RunCheckpoints):
    def __init__(self, plan: Plan, session: Session, built: Built) -> None:
        super().__init__(plan, session)
        self._built = built
        # told who takes part, orbax meets at the coordination service; else over the devices, where its messages and
        # training's would mix
        everyone = ocp.options.MultiprocessingOptions(active_processes=set(range(session.world_size)))
        # fp32 values are hardly smaller compressed (8 %), but saving takes four times as long
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=everyone)
        self._orbax = ocp.AsyncCheckpointer(handler, multiprocessing_options=everyone)
        self._round = itertools.count()

    def _prepare(self, *, background: bool) -> Stage:
        state = {part: {name: v.get_value() for name, v in of.items()} for part, of in held(self._built.state).items()}
        if background:  # the next step gives the arrays' memory to the new ones
            state = jax.tree.map(_aside, state)
            jax.block_until_ready(state)

        def write(directory: Path) -> dict[str, str]:
            try:
                self._orbax.save((directory / FOLDER).absolute(), args=ocp.args.PyTreeSave(state))
                self._orbax.wait_until_finished()
            except (ValueError, RuntimeError) as error:
                raise CheckpointError(_reason(error)) from error
            return {}

        return lambda: write

    def _read(self, info: CheckpointInfo) -> None:
        parts = held(self._built.state)
        wanted = {
            part: {
                name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
                for name, array in ((name, variable.get_value()) for name, variable in of.items())
            }
            for part, of in parts.items()
        }
        try:
            each = ocp.checkpoint_utils.construct_restore_args(wanted)
            # another engine keeps biases that balance experts, all zero, where this one has none
            args = ocp.args.PyTreeRestore(wanted, each, partial_restore=True)
            found = self._orbax.restore((info.directory / FOLDER).absolute(), args=args)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"cannot be loaded: {_reason(error)}",
                where=str(info.directory),
                remedy="continue with the version of Primus that wrote it",
            ) from error
        for part, of in parts.items():
            for name, variable in of.items():
                variable.set_value(found[part][name])
        self._built.set_updates(info.step)

    def _gather(self, value: T) -> list[T]:
        if self.session.world_size == 1:
            return [value]
        client = jax._src.distributed.global_state.client
        number, mine = next(self._round), self.session.rank
        client.key_value_set_bytes(f"primus/{number}/{mine}", pickle.dumps(value))
        values = [
            pickle.loads(client.blocking_key_value_get_bytes(f"primus/{number}/{rank}", PATIENCE_MS))
            for rank in range(self.session.world_size)
        ]
        if number:  # all have begun this round, so none reads the last one any more
            client.key_value_delete(f"primus/{number - 1}/{mine}")
        return values

    def _from_first_rank(self, value: T) -> T:
        return self._gather(value)[0]


def _reason(error: Exception) -> str:
    """One sentence: the system's where there is one, else without tensorstore's specification of the array."""
    text = str(error)
    if number := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(number[1]))
    return text.partition(" [tensorstore_spec=")[0]


def _aside(array: Any) -> Any:
    """A copy in the host's memory, cut as `array` is."""
    if array.sharding.memory_kind == "unpinned_host":
        return jnp.copy(array)
    return jax.device_put(array, array.sharding.with_memory_kind("pinned_host"))
