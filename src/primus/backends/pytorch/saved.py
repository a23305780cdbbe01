"""What is inside a distributed checkpoint, tensor by tensor under Hugging Face names.

One process, no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

from primus.checkpoints.weights import BLOCK, Source, Weight, to_huggingface
from primus.config.experiment import Model
from primus.errors import CheckpointError


class SavedTensors:
    """Those of the checkpoint in `directory` that `weights` describe, under Hugging Face's names.

    stored: name of a weight -> name under which it, or what belongs to it, is in the checkpoint. Raises CheckpointError
    when tensors are missing or of another shape.
    """

    def __init__(self, directory: Path, weights: Iterable[Weight], stored: Callable[[str], str] = str) -> None:
        self._directory, self._reader = directory, FileSystemReader(directory)
        self._stored = stored
        metadata = self._reader.read_metadata()
        self._parts: dict[str, list[tuple[torch.Size, _StorageInfo]]] = {}
        """Name in the checkpoint -> where each part that a rank saved begins in the tensor, and in which file it is."""
        for index, info in (metadata.storage_data or {}).items():
            self._parts.setdefault(index.fqn, []).append((index.offset or torch.Size(), info))
        there = metadata.state_dict_metadata
        shapes = {name: tuple(entry.size) for name, entry in there.items() if isinstance(entry, TensorStorageMetadata)}
        self.names = frozenset(shapes)
        """Of every tensor in the checkpoint, described or not."""
        seen: set[str] = set()
        self._weights: list[Weight] = []
        for weight in weights:
            name = stored(weight.native)
            if name not in shapes and not weight.optional:
                raise CheckpointError(f"the checkpoint lacks {name}", where=str(directory))
            if shapes.get(name, weight.shape) != weight.shape:
                found = f"{name} is {shapes[name]}, the model wants {weight.shape}"
                raise CheckpointError(found, where=str(directory))
            if name not in shapes and weight.ours:
                continue
            if not seen.issuperset(names := [source.name for source in weight.sources]):
                self._weights.append(weight)  # a tied output projection comes after the embedding, and is left out
                seen.update(names)
        self._present = {weight.native for weight in self._weights if stored(weight.native) in shapes}

    @property
    def sources(self) -> list[Source]:
        """Every tensor, in the order of ``tensors``."""
        return [source for weight in self._weights for source in weight.sources]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Name and values of every tensor. Those that one rank saved whole are mapped from the file; of the others one
        at a time is put together."""
        for weight in self._weights:
            converted = to_huggingface(weight, self._native(weight))
            for source, tensor in zip(weight.sources, converted, strict=True):
                yield source.name, tensor

    @staticmethod
    def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """``safetensors.narrowed`` by torch, ten times as fast."""
        aligned = torch.from_numpy(np.require(values, requirements="A"))  # in files of earlier versions they are not
        stored = torch.empty(values.size, dtype={"BF16": torch.bfloat16, "F16": torch.float16}[dtype])
        for start in range(0, values.size, BLOCK):
            stored[start : start + BLOCK] = aligned[start : start + BLOCK]
        return stored.view(torch.uint16).numpy()

    def _native(self, weight: Weight) -> NDArray[np.float32]:
        """The native tensor `weight`; zeros when it is optional and not there."""
        if weight.native not in self._present:
            return np.zeros(weight.shape, np.float32)
        name = self._stored(weight.native)
        parts = [(offsets, self._mapped(info)) for offsets, info in self._parts[name]]
        if sum(part.size for _, part in parts) != prod(weight.shape):
            raise CheckpointError(f"the checkpoint holds {name} in part only", where=str(self._directory))
        if len(parts) == 1:
            return parts[0][1].reshape(weight.shape)
        whole = np.empty(weight.shape, np.float32)
        for offsets, part in parts:
            whole[tuple(slice(first, first + size) for first, size in zip(offsets, part.shape, strict=True))] = part
        return whole

    def _mapped(self, info: _StorageInfo) -> NDArray[np.float32]:
        """One part of a tensor. torch tells where its elements are in the file without reading them."""
        path = self._directory / info.relative_path
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


class SavedModel(SavedTensors):
    """The model of the checkpoint in `directory` for Hugging Face; the optimizer's state is never read.

    Raises CheckpointError also when Hugging Face's format cannot hold what was trained.
    """

    def __init__(self, directory: Path, weights: Iterable[Weight], model: Model) -> None:
        super().__init__(directory, weights)
        if model.model_type == "deepseek_v3" and model.scoring_func == "softmax":
            raise CheckpointError(
                "this model routes by softmax, but deepseek_v3 in Hugging Face's format always by sigmoid",
                where="model.scoring_func",
            )
        for weight in filter(lambda weight: weight.ours, self._weights):
            self._refuse_unless_zero(weight, directory)
        self._weights = [weight for weight in self._weights if not weight.ours]

    def _refuse_unless_zero(self, weight: Weight, directory: Path) -> None:
        if self._native(weight).any():
            raise CheckpointError(
                f"{weight.native} is a balancing bias, which Hugging Face's format has no place for",
                where=str(directory),
                remedy="train with moe.balance: none to export",
            )
