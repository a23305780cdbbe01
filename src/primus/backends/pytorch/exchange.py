"""Moving a run between engines, and export, for checkpoints in torch's distributed format."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from primus.backends.base import Progress
from primus.backends.exchange import Between, LayoutOf, Wanted, native_values
from primus.backends.pytorch.pieces import Made
from primus.backends.pytorch.saved import Saved
from primus.backends.pytorch.shards import as_tensor
from primus.backends.pytorch.storage import HashingWriter
from primus.checkpoints.weights import Weight
from primus.errors import CheckpointError


def name_of(part: str, native: str) -> str:
    """Under which name the weight `native`, or a moment of it, is in a checkpoint of either engine."""
    return native if part == "weights" else f"optimizer.{native}.{part}"


def read(checkpoint: Path, weights: Sequence[Weight], part: str) -> Saved:
    """See ``backends.exchange.Read``."""
    return Saved(checkpoint, weights, partial(name_of, part))


def import_state(layout: LayoutOf, backend: str, directory: Path, checkpoint: Path, progress: Progress) -> None:
    """See ``backends.base.Exchange``; `backend` is the name to write down."""
    between = Between(directory)
    listed = between.wanted(layout)
    done = 0

    def made(wanted: Wanted) -> torch.Tensor:
        nonlocal done
        tensor = as_tensor(native_values(wanted.weight, found=wanted.found))
        done += 1
        progress(done, len(listed))
        return tensor

    state = {name_of(each.part, each.weight.native): Made(each.weight.shape, partial(made, each)) for each in listed}
    writer = HashingWriter(checkpoint, threads=1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*assuming the intent is to save in a single process.*")
            save(state, storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        cause: BaseException = next(iter(error.failures.values()))[0]
        raise CheckpointError(str(cause), where=str(checkpoint)) from error
    between.seal(checkpoint, backend, writer.digests)
