"""Which part of a global tensor this rank holds, and filling it in place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

from primus.backends.torchtitan.platform import available_cores
from primus.backends.torchtitan.weights import BLOCK, Rows, Weight
from primus.errors import CheckpointError

Values = Callable[[Weight, int, Rows, NDArray[np.int64]], NDArray[np.float32]]
"""(weight, source, offsets [n] of rows in it, columns [c]) -> values [n, c]."""

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What recomputation and compilation put into parameter names."""


def local_indices(tensor: torch.Tensor) -> list[NDArray[np.int64]]:
    """For each dimension, the global index of every local index of `tensor` (a plain tensor is all there).

    Placements apply from the outer mesh dimension to the inner one. A strided shard (FSDP over a dimension that tensor
    parallelism also shards) takes its part of each of ``split_factor`` pieces, so that the inner shard's piece is
    contiguous.
    """
    indices = [torch.arange(size) for size in tensor.shape]
    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            return [np.empty(0, np.int64) for _ in indices]
        for size, rank, placement in zip(map(int, mesh.shape), coordinate, placements, strict=True):
            if isinstance(placement, Replicate):
                continue
            if isinstance(placement, _StridedShard):
                pieces = indices[placement.dim].chunk(int(placement.split_factor))
                indices[placement.dim] = torch.cat([_chunk(piece, size, rank) for piece in pieces])
            elif isinstance(placement, Shard):
                indices[placement.dim] = _chunk(indices[placement.dim], size, rank)
            else:
                raise NotImplementedError(f"a parameter placed as {placement} cannot be filled in place")
        held = tuple(tensor.to_local().shape)
        if held != tuple(len(index) for index in indices) and 0 not in held:
            raise NotImplementedError(f"the shard of {placements} holds {held}, expected {[len(i) for i in indices]}")
    return [index.numpy() for index in indices]


def _chunk(index: torch.Tensor, count: int, rank: int) -> torch.Tensor:
    chunks = index.chunk(int(count))
    return chunks[rank] if rank < len(chunks) else index[:0]


def named_tensors(model_parts: Iterable[nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of every part under their plain names, shared ones once."""
    seen: set[int] = set()
    for part in model_parts:
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield reduce(lambda plain, wrapper: plain.replace(wrapper, ""), WRAPPERS, name), tensor


@torch.no_grad()
def fill(model_parts: Iterable[nn.Module], weights: Iterable[Weight], values: Values) -> None:
    """Set this rank's part of every parameter and persistent buffer to `values`, in place, without communication.

    `values` is called from several threads, one tensor each: numpy works outside the interpreter's lock.
    """
    known = {weight.native: weight for weight in weights}
    jobs: list[Callable[[], None]] = []
    for part in model_parts:
        parameters = {id(parameter) for parameter in part.parameters()}
        for name, tensor in named_tensors([part]):
            weight = known.get(name)
            if weight is None and id(tensor) not in parameters:
                continue  # a buffer that is no state, such as the rotary cache
            if weight is None or tuple(tensor.shape) != weight.shape:
                raise CheckpointError(
                    f"parameter {name} of shape {tuple(tensor.shape)} has no counterpart in the Hugging Face layout",
                    where="model",
                )
            jobs += _filling(tensor, weight, values)
    threads = max(1, min(8, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda job: job(), jobs):
            pass


def _filling(tensor: torch.Tensor, weight: Weight, values: Values) -> list[Callable[[], None]]:
    """What fills `tensor`: nothing, or one job."""
    *leading, last = local_indices(tensor)
    if not leading:  # a row for each element
        leading, last = [last], np.zeros(1, np.int64)
    count = math.prod(len(index) for index in leading)
    if not count or not last.size:
        return []
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    matrix = local.detach().view(count, last.size)
    if not weight.sources:
        matrix.zero_()
        return []
    return [lambda: _fill_rows(matrix, weight, _flatten(leading, weight.shape), last, values)]


def _fill_rows(matrix: torch.Tensor, weight: Weight, rows: Rows, columns: NDArray[np.int64], values: Values) -> None:
    which, offsets = weight.locate(rows)
    step = max(1, BLOCK // columns.size)
    # Runs of rows of one source, so that each call reads one tensor.
    borders = np.flatnonzero(np.diff(which)) + 1
    for first, last in zip([0, *borders], [*borders, rows.size], strict=True):
        for begin in range(first, last, step):
            end = min(begin + step, last)
            block = values(weight, int(which[first]), offsets[begin:end], columns)
            matrix[begin:end].copy_(torch.from_numpy(block))


def _flatten(indices: list[NDArray[np.int64]], shape: tuple[int, ...]) -> Rows:
    """Flat index over the leading dimensions of `shape` of every combination of `indices`, in row-major order."""
    flat = np.zeros(1, np.int64)
    for index, size in zip(indices, shape, strict=False):
        flat = (flat[:, None] * size + index[None, :]).reshape(-1)
    return flat
