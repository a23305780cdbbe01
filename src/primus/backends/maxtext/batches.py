"""Samples of the shared order as MaxText's batches, each process with the part that its devices hold."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from primus.data.reader import IGNORED, Batch, SampleReader

NAMES = (
    "inputs",
    "inputs_position",
    "inputs_segmentation",
    "targets",
    "targets_position",
    "targets_segmentation",
)


class Batches:
    """Global batches of `size` samples; `reader` is asked for those rows only that are on this process's devices.

    within: attention stops at the ends of documents.
    """

    def __init__(self, reader: SampleReader, size: int, length: int, sharding: jax.sharding.Sharding, *, within: bool):
        self.reader, self._shape, self._sharding, self._within = reader, (size, length), sharding, within

    def read(self, first: int, count: int | None = None) -> dict[str, jax.Array]:
        """The batch whose first sample has position `first`. count: samples that there are, if fewer than a batch: the
        rest has no targets. int32 [size, length] each; ``targets_segmentation`` is 0 where a target does not count."""
        parts: dict[tuple[int, int], dict[str, NDArray[np.int32]]] = {}

        def part(name: str, index: tuple[slice, ...]) -> NDArray[np.int32]:
            begin, end, _ = index[0].indices(self._shape[0])
            if (begin, end) not in parts:
                there = self._shape[0] if count is None else count
                parts[begin, end] = self._rows(first, begin, end, there)
            return parts[begin, end][name][:, index[1]]

        return {
            name: jax.make_array_from_callback(self._shape, self._sharding, lambda index, name=name: part(name, index))
            for name in NAMES
        }

    def _rows(self, first: int, begin: int, end: int, there: int) -> dict[str, NDArray[np.int32]]:
        whole = max(0, min(end, there) - begin)
        batch = self.reader.read(first + begin if whole else first, whole or 1)
        rows = np.minimum(np.arange(end - begin), max(whole - 1, 0))
        return _named(batch, rows, np.arange(end - begin) < whole, within=self._within)


def _named(batch: Batch, rows: NDArray[np.int64], counts: NDArray[np.bool_], *, within: bool) -> dict[str, Any]:
    """`rows` of `batch` under MaxText's names; counts: the rows whose targets count."""
    positions, labels = batch.positions[rows].astype(np.int32), batch.labels[rows]
    documents = np.cumsum(positions == 0, axis=1, dtype=np.int32) if within else np.ones_like(positions)
    valid = (labels != IGNORED) & counts[:, None]
    return {
        "inputs": batch.inputs[rows].astype(np.int32),
        "inputs_position": positions,
        "inputs_segmentation": documents,
        "targets": np.where(valid, labels, 0).astype(np.int32),
        "targets_position": positions,
        "targets_segmentation": valid.astype(np.int32),
    }
