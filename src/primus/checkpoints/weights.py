"""Where the elements of an engine's tensors live in a Hugging Face checkpoint.

One description serves the random start, the import and the export. Engines store some weights in another shape or
order than Hugging Face: query, key and value projections fused and interleaved by key/value head, rotary pairs side by
side, the experts of a layer in one tensor. Yet every row of a native tensor (all dimensions but the last) lies on a
straight line in one Hugging Face tensor: it begins at a flat offset and advances by a constant stride. A ``Weight``
knows these offsets for any set of rows, so that a shard can be filled without its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Locate = Callable[[Rows], tuple[Rows, Rows]]
"""Native rows -> (which source, flat offset of the row's first element in it)."""

Start = Literal["normal", "ones", "zeros"]

BLOCK = 1 << 15
"""Elements moved at a time. More of them torch would give to several threads, which spin while they wait."""


@dataclass(frozen=True)
class Source:
    """A tensor in a Hugging Face checkpoint."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One native tensor: `shape` is global, whatever the sharding. `stride` is the distance of neighbouring columns in
    the source; a tensor of one dimension has as many rows as elements and one column."""

    native: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    locate: Locate
    stride: int = 1
    start: Start = "normal"
    optional: bool = False
    """Either side may lack it, which means zeros there."""
    ours: bool = False
    """Its source's name is Primus's own: Hugging Face's format has no such tensor."""

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]

    @property
    def columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1


Values = Callable[[Weight, int, Rows, NDArray[np.int64]], NDArray[Any]]
"""(weight, source, offsets [n] of rows in it, columns [c]) -> values [n, c], floating; uint16 holds bfloat16."""


@dataclass(frozen=True)
class Region:
    """Rows first ... end - 1 of a part of a native tensor, which all lie in one source: their `offsets` there, and
    the `columns` that the part has."""

    first: int
    end: int
    source: int
    offsets: Rows
    columns: NDArray[np.int64]


def regions(weight: Weight, indices: Sequence[NDArray[np.int64]], at_once: int = BLOCK) -> Iterator[Region]:
    """The part of `weight` that holds `indices` in each dimension, in regions of about `at_once` elements. Rows are
    numbered in the part, as a matrix with its last dimension as columns."""
    *leading, columns = indices
    if not leading:  # a row for each element
        leading, columns = [columns], np.zeros(1, np.int64)
    rows = _flatten(leading, weight.shape)
    if not rows.size or not columns.size:
        return
    which, offsets = weight.locate(rows)
    step = max(1, at_once // columns.size)
    for first, last in runs(which):
        for begin in range(first, last, step):
            end = min(begin + step, last)
            yield Region(begin, end, int(which[first]), offsets[begin:end], columns)


def _flatten(indices: Sequence[NDArray[np.int64]], shape: tuple[int, ...]) -> Rows:
    """Flat index over the leading dimensions of `shape` of every combination of `indices`, in row-major order."""
    flat = np.zeros(1, np.int64)
    for index, size in zip(indices, shape, strict=False):
        flat = (flat[:, None] * size + index[None, :]).reshape(-1)
    return flat


def plain(native: str, name: str, *shape: int, start: Start | None = None, optional: bool = False) -> Weight:
    """Same shape and order on both sides. Tensors of one dimension start at zero unless told otherwise."""
    columns = shape[-1] if len(shape) > 1 else 1

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        return np.zeros_like(rows), rows * columns

    start = start or ("normal" if len(shape) > 1 else "zeros")
    return Weight(native, shape, (Source(name, shape),), locate, start=start, optional=optional)


def absent(native: str, name: str, *shape: int) -> Weight:
    """Native state that Hugging Face's format has no place for; zero at the start. Between engines it is called
    `name`."""
    return replace(plain(native, name, *shape, start="zeros", optional=True), ours=True)


def balancing_bias(layer: int) -> str:
    """What the bias that steers the choice of experts is called between engines, where Hugging Face has no name."""
    return f"primus.layers.{layer}.balancing_bias"


def norm(native: str, name: str, width: int) -> Weight:
    return plain(native, name, width, start="ones")


def rotary_pairs(native: str, name: str, heads: int, head_dim: int, columns: int) -> Weight:
    """A query or key projection, [heads * head_dim, columns]. The native rotary embedding turns neighbouring rows (2i,
    2i + 1) of a head together, Hugging Face's turns rows (i, i + head_dim / 2)."""
    shape = (heads * head_dim, columns)

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        head, row = np.divmod(rows, head_dim)
        pair, second = np.divmod(row, 2)
        return np.zeros_like(rows), (head * head_dim + second * (head_dim // 2) + pair) * columns

    return Weight(native, shape, (Source(name, shape),), locate)


def experts(native: str, name: str, count: int, out_features: int, in_features: int) -> Weight:
    """Native [count, out, in]; one Hugging Face tensor [out, in] an expert, `name` holding ``{}`` for its number."""

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        expert, row = np.divmod(rows, out_features)
        return expert, row * in_features

    sources = tuple(Source(name.format(index), (out_features, in_features)) for index in range(count))
    return Weight(native, (count, out_features, in_features), sources, locate)


def transposed_experts(native: str, name: str, count: int, out_features: int, in_features: int) -> Weight:
    """Native [count, out, in]; one Hugging Face tensor [count, in, out]."""

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        expert, row = np.divmod(rows, out_features)
        return np.zeros_like(rows), expert * (in_features * out_features) + row

    source = Source(name, (count, in_features, out_features))
    return Weight(native, (count, out_features, in_features), (source,), locate, stride=out_features)


def paired_experts(native: str, name: str, count: int, width: int, in_features: int) -> Weight:
    """Native [count, 2 * width, in], gate and up projection row by row in turn; one Hugging Face tensor
    [count, in, 2 * width], all of the gate before all of the up projection."""
    columns = 2 * width

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        expert, row = np.divmod(rows, columns)
        pair, up = np.divmod(row, 2)
        return np.zeros_like(rows), expert * (in_features * columns) + up * width + pair

    source = Source(name, (count, in_features, columns))
    return Weight(native, (count, columns, in_features), (source,), locate, stride=columns)


def fused_qkv(native: str, qkv: Sequence[Weight], heads: int, kv_heads: int, head_dim: int) -> Weight:
    """Query, key and value in one tensor: for each key/value head its query heads, then its key, then its value."""
    query_heads = heads // kv_heads
    query_rows = query_heads * head_dim
    group = query_rows + 2 * head_dim
    columns = qkv[0].columns

    def locate(rows: Rows) -> tuple[Rows, Rows]:
        kv_head, row = np.divmod(rows, group)
        which = np.where(row < query_rows, 0, np.where(row < query_rows + head_dim, 1, 2))
        offset = np.zeros_like(rows)
        slots = ((0, query_rows), (query_rows, head_dim), (query_rows + head_dim, head_dim))
        for part, (first, size) in enumerate(slots):
            mine = which == part
            offset[mine] = qkv[part].locate(kv_head[mine] * size + row[mine] - first)[1]
        return which, offset

    rows = kv_heads * group
    shape = (rows, columns) if len(qkv[0].shape) > 1 else (rows,)
    sources = tuple(weight.sources[0] for weight in qkv)
    return Weight(native, shape, sources, locate, start=qkv[0].start)


def runs(which: Rows) -> list[tuple[int, int]]:
    """First and end of every run of rows of one source."""
    borders = (np.flatnonzero(np.diff(which)) + 1).tolist()
    return list(zip([0, *borders], [*borders, which.size], strict=True))


def lines(flat: NDArray[Any], offsets: Rows, columns: NDArray[np.int64], stride: int) -> NDArray[Any]:
    """Elements ``offsets[i] + columns[j] * stride`` of `flat`, [n, c]: a view where they are evenly spaced, which saves
    most of the time, a copy elsewhere."""
    right = _spacing(columns)
    if right is None:
        found: NDArray[Any] = flat[offsets[:, None] + columns[None, :] * stride]
    else:
        found = _windows(flat, columns.size, right * stride)[_places(offsets + columns[0] * stride)]
    return found


def _windows(flat: NDArray[Any], count: int, distance: int) -> NDArray[Any]:
    """[n, count]: for every place in `flat` where they fit, `count` elements from there on, `distance` apart."""
    width = flat.itemsize
    return as_strided(flat, (flat.size - (count - 1) * distance, count), (width, distance * width))


def _places(index: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """`index`, as a slice if it can be."""
    distance = _spacing(index)
    return index if distance is None else slice(int(index[0]), int(index[-1]) + 1, distance)


def _spacing(index: NDArray[np.int64]) -> int | None:
    """Distance of neighbours in `index` if all are the same and go up."""
    if index.size < 2:
        return 1
    distance = int(index[1] - index[0])
    return distance if distance > 0 and (np.diff(index) == distance).all() else None


def to_huggingface(weight: Weight, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The whole native tensor `values` as the tensors of ``weight.sources``: views of it where they lie in it as they
    are."""
    matrix = values.reshape(weight.rows, weight.columns)
    out: list[NDArray[np.float32] | None] = [None] * len(weight.sources)
    which, offsets = weight.locate(np.arange(weight.rows, dtype=np.int64))
    step = max(1, BLOCK // weight.columns)
    for first, last in runs(which):
        number, size = int(which[first]), math.prod(weight.sources[which[first]].shape)
        straight = weight.stride == 1 and (np.diff(offsets[first:last]) == weight.columns).all()
        if straight and (last - first) * weight.columns == size:
            out[number] = matrix[first:last].reshape(-1)
            continue
        target = out[number]
        if target is None:
            target = out[number] = np.empty(size, np.float32)
        windows = _windows(target, weight.columns, weight.stride)
        for begin in range(first, last, step):
            end = min(begin + step, last)
            windows[_places(offsets[begin:end])] = matrix[begin:end]
    return [flat.reshape(source.shape) for flat, source in zip(out, weight.sources, strict=True) if flat is not None]
