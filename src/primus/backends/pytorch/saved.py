"""What is inside a distributed checkpoint, tensor by tensor under Hugging Face names.

One process, no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from primus.backends.pytorch.weights import Source, Weight, to_huggingface
from primus.config.experiment import Model
from primus.errors import CheckpointError

BATCH_BYTES = 1 << 29
"""Of native tensors read at a time: each read walks the checkpoint's metadata once."""


class SavedTensors:
    """Those of the checkpoint in `directory` that `weights` describe, under Hugging Face's names.

    stored: name of a weight -> name under which it, or what belongs to it, is in the checkpoint. Raises CheckpointError
    when tensors are missing or of another shape.
    """

    def __init__(self, directory: Path, weights: Iterable[Weight], stored: Callable[[str], str] = str) -> None:
        self._reader = FileSystemReader(directory)
        self._stored = stored
        there = self._reader.read_metadata().state_dict_metadata
        shapes = {name: tuple(entry.size) for name, entry in there.items() if isinstance(entry, TensorStorageMetadata)}
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
        """Name and values of every tensor. Holds `BATCH_BYTES` of native tensors, or a larger one, and one more."""
        batch: list[Weight] = []
        filled = 0
        for weight in self._weights:
            size = 4 * weight.rows * weight.columns
            if batch and filled + size > BATCH_BYTES:
                yield from self._convert(batch)
                batch, filled = [], 0
            batch.append(weight)
            filled += size
        yield from self._convert(batch)

    def _convert(self, batch: list[Weight]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        state = {
            weight.native: (torch.empty if weight.native in self._present else torch.zeros)(weight.shape)
            for weight in batch
        }
        self._load({self._stored(name): tensor for name, tensor in state.items() if name in self._present})
        for weight in batch:
            values = state.pop(weight.native).numpy()
            for source, tensor in zip(weight.sources, to_huggingface(weight, values), strict=True):
                yield source.name, tensor

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        load(state, storage_reader=self._reader, no_dist=True)


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
        state = {weight.native: torch.empty(weight.shape)}
        self._load(state)
        if state[weight.native].any():
            raise CheckpointError(
                f"{weight.native} is a balancing bias, which Hugging Face's format has no place for",
                where=str(directory),
                remedy="train with moe.balance: none to export",
            )
