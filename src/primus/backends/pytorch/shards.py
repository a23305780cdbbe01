"""The part of each native tensor that this rank holds, and filling it in place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from primus.backends.machine import available_cores
from primus.checkpoints.weights import BLOCK, Values, Weight, regions
from primus.errors import CheckpointError


@dataclass(frozen=True)
class Shard:
    """One native tensor on this rank.

    local: the elements held here, contiguous. shape: of the whole tensor. indices: for each dimension, the global index
    of every local index.
    """

    name: str
    local: torch.Tensor
    shape: tuple[int, ...]
    indices: list[NDArray[np.int64]]


@torch.no_grad()
def fill(shards: Iterable[Shard], weights: Iterable[Weight], values: Values, at_once: int = BLOCK) -> None:
    """Set every shard to `values`, in place, without communication. at_once: about how many elements a call of `values`
    is asked for.

    `values` is called from several threads, one tensor each: numpy and torch work outside the interpreter's lock.
    Raises CheckpointError for a shard that no weight describes.
    """
    known = {weight.native: weight for weight in weights}
    jobs: list[tuple[Shard, Weight]] = []
    for shard in shards:
        weight = known.get(shard.name)
        if weight is None or shard.shape != weight.shape:
            raise CheckpointError(
                f"parameter {shard.name} of shape {shard.shape} has no counterpart in the Hugging Face layout",
                where="model",
            )
        jobs.append((shard, weight))

    def fill_one(job: tuple[Shard, Weight]) -> None:
        shard, weight = job
        for part in regions(weight, shard.indices, at_once):
            matrix = shard.local.detach().view(-1, part.columns.size)
            _copy(as_tensor(values(weight, part.source, part.offsets, part.columns)), matrix[part.first : part.end])

    threads = max(1, min(8, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill_one, jobs):
            pass


def as_tensor(values: NDArray[Any]) -> torch.Tensor:
    """`values`, of which uint16 holds bfloat16, as a tensor that shares them, unless torch cannot read them where they
    lie in a file."""
    tensor = torch.from_numpy(np.require(values, requirements="A"))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    rows = max(1, BLOCK // target.shape[1])
    for given, part in zip(torch.split(source, rows), torch.split(target, rows), strict=True):
        part.copy_(given)
