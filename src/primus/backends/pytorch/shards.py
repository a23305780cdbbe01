"""The part of each native tensor that this rank holds, and filling it in place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from primus.backends.pytorch.devices import available_cores
from primus.backends.pytorch.weights import BLOCK, Rows, Weight, runs
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
def fill(shards: Iterable[Shard], weights: Iterable[Weight], values: Values) -> None:
    """Set every shard to `values`, in place, without communication.

    `values` is called from several threads, one tensor each: numpy and torch work outside the interpreter's lock.
    Raises CheckpointError for a shard that no weight describes.
    """
    known = {weight.native: weight for weight in weights}
    jobs: list[Callable[[], None]] = []
    for shard in shards:
        weight = known.get(shard.name)
        if weight is None or shard.shape != weight.shape:
            raise CheckpointError(
                f"parameter {shard.name} of shape {shard.shape} has no counterpart in the Hugging Face layout",
                where="model",
            )
        jobs += _filling(shard, weight, values)
    threads = max(1, min(8, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda job: job(), jobs):
            pass


def _filling(shard: Shard, weight: Weight, values: Values) -> list[Callable[[], None]]:
    """What fills `shard`: nothing, or one job."""
    *leading, last = shard.indices
    if not leading:  # a row for each element
        leading, last = [last], np.zeros(1, np.int64)
    count = math.prod(len(index) for index in leading)
    if not count or not last.size:
        return []
    matrix = shard.local.detach().view(count, last.size)
    return [lambda: _fill_rows(matrix, weight, _flatten(leading, weight.shape), last, values)]


def _fill_rows(matrix: torch.Tensor, weight: Weight, rows: Rows, columns: NDArray[np.int64], values: Values) -> None:
    which, offsets = weight.locate(rows)
    step = max(1, BLOCK // columns.size)
    for first, last in runs(which):  # so that each call reads one tensor
        for begin in range(first, last, step):
            end = min(begin + step, last)
            matrix[begin:end].copy_(values(weight, int(which[first]), offsets[begin:end], columns))


def _flatten(indices: list[NDArray[np.int64]], shape: tuple[int, ...]) -> Rows:
    """Flat index over the leading dimensions of `shape` of every combination of `indices`, in row-major order."""
    flat = np.zeros(1, np.int64)
    for index, size in zip(indices, shape, strict=False):
        flat = (flat[:, None] * size + index[None, :]).reshape(-1)
    return flat
