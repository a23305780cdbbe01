"""The part of each native tensor that this rank holds, and filling it in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from primus.backends.pytorch.devices import available_cores
from primus.checkpoints.weights import BLOCK, Rows, Weight, runs
from primus.errors import CheckpointError

Values = Callable[[Weight, int, Rows, NDArray[np.int64]], torch.Tensor]
"""(weight, source, offsets [n] of rows in it, columns [c]) -> values [n, c], of any floating dtype."""


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
        *leading, columns = shard.indices
        if not leading:  # a row for each element
            leading, columns = [columns], np.zeros(1, np.int64)
        rows = _flatten(leading, weight.shape)
        if not rows.size or not columns.size:
            return
        matrix = shard.local.detach().view(rows.size, columns.size)
        which, offsets = weight.locate(rows)
        for first, end in _blocks(runs(which), max(1, at_once // columns.size)):
            _copy(values(weight, int(which[first]), offsets[first:end], columns), matrix[first:end])

    threads = max(1, min(8, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill_one, jobs):
            pass


def as_tensor(values: NDArray[Any], dtype: str) -> torch.Tensor:
    """`values`, stored as safetensors' `dtype`, as a tensor that shares them, unless torch cannot read them where they
    lie in the file."""
    tensor = torch.from_numpy(np.require(values, requirements="A"))
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor


def _blocks(of_one_source: Iterable[tuple[int, int]], rows: int) -> Iterator[tuple[int, int]]:
    """First and end of every block of at most `rows` rows of one source."""
    for first, last in of_one_source:
        for begin in range(first, last, rows):
            yield begin, min(begin + rows, last)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    rows = max(1, BLOCK // target.shape[1])
    for given, part in zip(torch.split(source, rows), torch.split(target, rows), strict=True):
        part.copy_(given)


def _flatten(indices: list[NDArray[np.int64]], shape: tuple[int, ...]) -> Rows:
    """Flat index over the leading dimensions of `shape` of every combination of `indices`, in row-major order."""
    flat = np.zeros(1, np.int64)
    for index, size in zip(indices, shape, strict=False):
        flat = (flat[:, None] * size + index[None, :]).reshape(-1)
    return flat
