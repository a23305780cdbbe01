"""Which part of its tensors this rank holds."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate, _StridedShard
from torch.distributed.tensor.placement_types import Shard as Sharded

from primus.backends.pytorch.shards import Shard

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What recomputation and compilation put into parameter names."""


def shards(model_parts: Iterable[nn.Module], state: Container[str]) -> Iterator[Shard]:
    """Every parameter of this rank and, of the buffers, those named in `state`; shared ones once a part."""
    for part in model_parts:
        parameters = {id(parameter) for parameter in part.parameters()}
        for name, tensor in named_tensors([part]):
            if id(tensor) in parameters or name in state:
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                yield Shard(name, local, tuple(tensor.shape), local_indices(tensor))


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
            elif isinstance(placement, Sharded):
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
