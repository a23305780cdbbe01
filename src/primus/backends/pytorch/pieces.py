"""Tensors of which a rank holds some rectangles, for torch's distributed checkpoints.

Megatron's shards fit no DTensor: a gated projection is cut in two places, and the distributed optimizer cuts flat
ranges that begin in the middle of a row. Cut into rectangles, each with its place in the whole, they are saved under
the whole tensor's name and loaded into any other cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class Piece:
    """A rectangle of a whole tensor: `offsets` of its first element there, and its elements, contiguous."""

    offsets: tuple[int, ...]
    tensor: torch.Tensor


class Pieces(torch.Tensor):
    """The part of a tensor of `shape` that this rank holds. It has no storage of its own and knows no arithmetic: it
    keeps the interface that torch's checkpoints ask of tensors which say themselves how they are cut."""

    pieces: list[Piece]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], pieces: list[Piece]) -> Pieces:
        wrapper: Pieces = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=pieces[0].tensor.dtype, device=pieces[0].tensor.device
        )
        wrapper.pieces = pieces
        return wrapper

    def __init__(self, shape: tuple[int, ...], pieces: list[Piece]) -> None:
        """See ``__new__``."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} of a tensor that is only described")

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                MetadataIndex(fqn, torch.Size(piece.offsets)),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(_chunk(piece), properties, torch.Size(self.shape)),
            )
            for piece in self.pieces
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(piece) for piece in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return next(piece.tensor for piece in self.pieces if torch.Size(piece.offsets) == index.offset)


class Made(torch.Tensor):
    """A whole tensor that is made when a checkpoint asks for its values, and forgotten when they are written."""

    make: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], make: Callable[[], torch.Tensor]) -> Made:
        wrapper: Made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        wrapper.make = make
        return wrapper

    def __init__(self, shape: tuple[int, ...], make: Callable[[], torch.Tensor]) -> None:
        """See ``__new__``."""

    __torch_dispatch__ = Pieces.__torch_dispatch__  # type: ignore[assignment]

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        origin = torch.Size([0] * len(self.shape))
        data = TensorWriteData(ChunkStorageMetadata(origin, self.shape), TensorProperties(dtype=self.dtype), self.shape)
        return [WriteItem(MetadataIndex(fqn, origin), WriteItemType.SHARD, tensor_data=data)]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.make()


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(piece.offsets), piece.tensor.shape)


def cut(flat: torch.Tensor, start: int, indices: Sequence[NDArray[np.int64]]) -> list[Piece]:
    """`flat`, elements ``start ...`` of a shard in row-major order, as rectangles of the whole tensor.

    indices: for each dimension of the shard, the place of every local index in the whole tensor. Of dimensions before
    the last two a shard holds one index each.
    """
    *leading, columns = indices
    lead, rows = leading[:-1], leading[-1:]
    if any(index.size != 1 for index in lead):
        raise NotImplementedError("a shard with several indices of a leading dimension")
    head = tuple(int(index[0]) for index in lead)
    places = list(_runs(columns))
    if not rows:
        return [
            Piece((int(columns[first]),), flat[first - start : last - start])
            for first, last in _within(places, start, start + flat.numel())
        ]
    if len(places) != 1:
        raise NotImplementedError("a shard whose columns lie apart")
    (row_places,), left, width = rows, int(columns[0]), columns.size
    pieces = []
    for first_row, last_row, first, last in _blocks(start, start + flat.numel(), width):
        for begin, end in _within(list(_runs(row_places)), first_row, last_row):
            at = begin * width + first - start
            size = last - first
            block = flat[at : at + (end - begin - 1) * width + size].view(end - begin, size)
            block = block[(None,) * len(head)]
            pieces.append(Piece((*head, int(row_places[begin]), left + first), block))
    return pieces


def _blocks(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """The flat range [start, stop) of a matrix as (first row, end row, first column, end column): the end of a row,
    whole rows, the beginning of one, or what there is of these."""
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            end = min(width, column + stop - start)
            yield row, row + 1, column, end
            start += end - column
        else:
            rows = (stop - start) // width
            yield row, row + rows, 0, width
            start += rows * width


def _runs(index: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and end of every stretch of `index` whose values follow each other."""
    borders = np.flatnonzero(np.diff(index) != 1) + 1
    yield from zip([0, *borders.tolist()], [*borders.tolist(), index.size], strict=True)


def _within(runs: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first, last in runs:
        if max(first, start) < min(last, stop):
            yield max(first, start), min(last, stop)
