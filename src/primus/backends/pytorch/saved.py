"""What is inside a distributed checkpoint, tensor by tensor under Hugging Face names.

One process, no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from primus.backends.exchange import SavedTensors
from primus.checkpoints.weights import BLOCK, Weight
from primus.errors import CheckpointError


class Saved(SavedTensors):
    """See ``SavedTensors``. A tensor that one rank saved whole is mapped from the file; of the others one at a time is
    put together."""

    def __init__(self, directory: Path, weights: Sequence[Weight], stored: Callable[[str], str]) -> None:
        self._reader = FileSystemReader(directory)
        metadata = self._reader.read_metadata()
        self._parts: dict[str, list[tuple[torch.Size, _StorageInfo]]] = {}
        """Name in the checkpoint -> where each part that a rank saved begins in the tensor, and in which file it is."""
        for index, info in (metadata.storage_data or {}).items():
            self._parts.setdefault(index.fqn, []).append((index.offset or torch.Size(), info))
        there = metadata.state_dict_metadata
        shapes = {name: tuple(entry.size) for name, entry in there.items() if isinstance(entry, TensorStorageMetadata)}
        super().__init__(directory, shapes, weights, stored)

    def read(self, weight: Weight) -> Iterator[tuple[Weight, NDArray[np.float32]]]:
        name = self.stored(weight.native)
        parts = [(offsets, self._mapped(info)) for offsets, info in self._parts[name]]
        if sum(part.size for _, part in parts) != prod(weight.shape):
            raise CheckpointError(f"the checkpoint holds {name} in part only", where=str(self.directory))
        if len(parts) == 1:
            yield weight, parts[0][1].reshape(weight.shape)
            return
        whole = np.empty(weight.shape, np.float32)
        for offsets, part in parts:
            whole[tuple(slice(first, first + size) for first, size in zip(offsets, part.shape, strict=True))] = part
        yield weight, whole

    @staticmethod
    def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """``safetensors.narrowed`` by torch, ten times as fast."""
        aligned = torch.from_numpy(np.require(values, requirements="A"))  # in files of earlier versions they are not
        stored = torch.empty(values.size, dtype={"BF16": torch.bfloat16, "F16": torch.float16}[dtype])
        for start in range(0, values.size, BLOCK):
            stored[start : start + BLOCK] = aligned[start : start + BLOCK]
        return stored.view(torch.uint16).numpy()

    def _mapped(self, info: _StorageInfo) -> NDArray[np.float32]:
        """One part of a tensor. torch tells where its elements are in the file without reading them."""
        path = self.directory / info.relative_path
        with path.open("rb") as file, FakeTensorMode():
            described: torch.Tensor = torch.load(self._reader._slice_file(file, info), weights_only=True)
        if not described.numel():
            return np.empty(tuple(described.shape), np.float32)
        storage: Any = described.untyped_storage()
        place = info.offset + storage._checkpoint_offset
        raw = np.memmap(path, np.uint8, mode="c", offset=place, shape=(storage.nbytes(),))
        if described.dtype == torch.float32:
            flat = raw.view(np.float32)
        else:
            flat = torch.from_numpy(np.array(raw)).view(described.dtype).float().numpy()
        steps = [flat.itemsize * step for step in described.stride()]
        return as_strided(flat[int(described.storage_offset()) :], tuple(described.shape), steps)
