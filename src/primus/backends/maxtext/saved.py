"""The arrays in a checkpoint that orbax wrote, read and written some layers at a time. Needs tensorstore, not JAX.

An array holds all layers of a model: tens of gigabytes. Each shard of it is a chunk in orbax's key-value store (OCDBT),
row-major and not compressed, so that the layers of a chunk lie one after another in a file and are mapped from there.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from primus.backends.exchange import SavedTensors
from primus.checkpoints.weights import Rows, Weight
from primus.errors import CheckpointError

FOLDER = "state"
ARRAY = "/.zarray"
DTYPE = "<f4"
SLAB_BYTES = 16 << 20
"""Moved at a time, or one layer when it is larger."""
AT_ONCE = 2
"""Writes under way: one slab is on its way to the disk while the next is made."""


class Saved(SavedTensors):
    """See ``SavedTensors``. part: of the state, ``weights``, ``exp_avg`` or ``exp_avg_sq``."""

    def __init__(self, checkpoint: Path, weights: Sequence[Weight], part: str) -> None:
        try:
            values = dict(stored(checkpoint / FOLDER))
            self._arrays = {
                key.removesuffix(ARRAY): Array(key.removesuffix(ARRAY), values) for key in values if key.endswith(ARRAY)
            }
        except (ValueError, KeyError) as error:
            raise _unreadable(checkpoint, error) from error
        shapes = {name: array.shape for name, array in self._arrays.items()}
        super().__init__(checkpoint, shapes, weights, lambda native: f"{part}.{native}")

    def read(self, weight: Weight) -> Iterator[tuple[Weight, NDArray[np.float32]]]:
        array = self._arrays[self.stored(weight.native)]
        for first, slab in layers(weight):
            try:
                values = array.read(first, first + slab.shape[0])
            except (ValueError, KeyError) as error:
                raise _unreadable(self.directory, error) from error
            yield slab, values


@dataclass(frozen=True)
class Span:
    """Where bytes lie in a file."""

    path: Path
    offset: int
    size: int


Value = bytes | Span
"""Of a key in the store: small ones lie beside their key, not in a file of their own."""


def stored(folder: Path) -> Iterator[tuple[str, Value]]:
    """Every key and its value in the store in `folder`."""
    base = tensorstore.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()

    def span(location: str) -> Span:
        _, above, name, offset, size = location.split(":")
        return Span(folder / f"{above}{name}", int(offset), int(size))

    def below(node: str, prefix: bytes) -> Iterator[tuple[str, Value]]:
        for entry in tensorstore.ocdbt.dump(base, node).result()["entries"]:
            key = prefix + entry["key"]
            if "location" in entry:
                yield from below(entry["location"], key[: len(prefix) + entry["subtree_common_prefix_length"]])
            else:
                yield key.decode(), entry["inline_value"] if "inline_value" in entry else span(entry["indirect_value"])

    root = tensorstore.ocdbt.dump(base).result()["versions"][-1]["root"]
    return below(root["location"], b"") if "location" in root else iter(())


class Array:
    """One array of those in `values`. Raises ValueError when its chunks are not plain."""

    def __init__(self, name: str, values: dict[str, Value]) -> None:
        self._name, self._values = name, values
        described = values[name + ARRAY]
        fields = json.loads(described if isinstance(described, bytes) else _mapped(described).tobytes())
        if fields["compressor"] or fields["filters"] or fields["order"] != "C" or fields["dtype"] != DTYPE:
            raise ValueError(f"{name} is not plain fp32; go on training for a step, which saves it so")
        self.shape, self._chunk = tuple(fields["shape"]), tuple(fields["chunks"])

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows first ... end - 1 of the first dimension: mapped, where one chunk holds them all."""
        across = [range(-(-size // step)) for size, step in zip(self.shape[1:], self._chunk[1:], strict=True)]
        whole = None
        for down in range(first // self._chunk[0], -(-end // self._chunk[0])):
            top = down * self._chunk[0]
            rows = slice(max(first - top, 0), end - top)
            for place in product(*across):
                part = self._part((down, *place))[rows]
                if part.shape == (end - first, *self.shape[1:]):
                    return part
                if whole is None:
                    whole = np.empty((end - first, *self.shape[1:]), np.float32)
                starts = [index * step for index, step in zip(place, self._chunk[1:], strict=True)]
                there = whole[(slice(max(top - first, 0), None), *(slice(start, None) for start in starts))]
                # a chunk at the edge is stored whole
                size = tuple(map(min, there.shape, part.shape))
                there[tuple(map(slice, size))] = part[tuple(map(slice, size))]
        assert whole is not None
        return whole

    def _part(self, place: tuple[int, ...]) -> NDArray[np.float32]:
        value = self._values[f"{self._name}/{'.'.join(map(str, place))}"]
        raw = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else _mapped(value)
        return raw.view(DTYPE).reshape(self._chunk)


def _unreadable(checkpoint: Path, error: Exception) -> CheckpointError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(f"cannot be read: {why}", where=str(checkpoint / FOLDER))


def _mapped(span: Span) -> NDArray[np.uint8]:
    return np.memmap(span.path, np.uint8, mode="c", offset=span.offset, shape=(span.size,))


Values = Callable[[Weight, NDArray[np.float32]], NDArray[np.float32]]
"""(some layers, memory for as many values) -> their values, in that memory or elsewhere."""


class Writer:
    """Makes the arrays of a checkpoint in the empty directory `checkpoint`."""

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint / FOLDER
        self._folder.mkdir()
        # `seal` brings the files to the disk
        self._context = tensorstore.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})
        base = {"driver": "file", "path": f"{self._folder.absolute()}/"}
        # as orbax sets it: one node for all keys
        config = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}
        self._store = {"driver": "ocdbt", "base": base, "config": config}
        self._pending: deque[tuple[Any, NDArray[np.float32]]] = deque()
        self._described: dict[str, Any] = {}

    def write(self, part: str, weight: Weight, values: Values) -> None:
        """The array of `weight`, a moment of it or itself."""
        shape = list(weight.shape)
        slabs = list(layers(weight))
        array = tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": {**self._store, "path": f"{part}.{weight.native}/"},
                "metadata": {"shape": shape, "chunks": slabs[0][1].shape, "compressor": None, "dtype": DTYPE},
                "store_data_equal_to_fill_value": True,
            },
            create=True,
            context=self._context,
        ).result()
        for first, slab in slabs:
            size, there = prod(slab.shape), array[first : first + slab.shape[0]]
            space = self._space(size)
            made = values(slab, space[:size])
            self._pending.append((there.write(made, can_reference_source_data_indefinitely=True), space))
        keys = [{"key": key, "key_type": 2} for key in (part, weight.native)]
        value = {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": shape}
        self._described[str((part, weight.native))] = {"key_metadata": keys, "value_metadata": value}

    def _space(self, size: int) -> NDArray[np.float32]:
        """Memory for at least `size` values, that of a finished write if it is large enough: fresh memory takes longer
        than what is done in it."""
        if len(self._pending) == AT_ONCE:
            writing, used = self._pending.popleft()
            writing.result()
            if used.size >= size:
                return used
        return np.empty(size, np.float32)

    def finish(self) -> None:
        """Write down what orbax asks for when it reads."""
        while self._pending:
            self._pending.popleft()[0].result()
        described = {
            "tree_metadata": self._described,
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (self._folder / "_METADATA").write_text(json.dumps(described), encoding="utf-8")


def layers(weight: Weight) -> Iterator[tuple[int, Weight]]:
    """`weight` in slabs of whole layers, as weights with the sources of those layers: the first layer, and the slab.
    One without layers is a single slab."""
    each, rest = divmod(len(weight.sources), weight.shape[0])
    if rest or not each:
        yield 0, weight
        return
    total, rows = weight.shape[0], weight.rows // weight.shape[0]
    most = max(1, SLAB_BYTES // (4 * prod(weight.shape[1:])))
    count = max(size for size in range(1, min(most, total) + 1) if total % size == 0)  # chunks are of one size
    for first in range(0, total, count):
        end = first + count

        def locate(wanted: Rows, first: int = first) -> tuple[Rows, Rows]:
            which, offsets = weight.locate(wanted + first * rows)
            return which - first * each, offsets

        shape, sources = (end - first, *weight.shape[1:]), weight.sources[first * each : end * each]
        yield first, replace(weight, shape=shape, sources=sources, locate=locate)
