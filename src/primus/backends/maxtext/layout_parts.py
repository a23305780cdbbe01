"""How MaxText keeps tensors: the layers of a stack in one array, the layer as its first dimension (``param_scan_axis:
0``), and projections as [inputs, heads, width], the transpose of what Hugging Face stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from primus.checkpoints.weights import Rows, Source, Start, Weight


@dataclass(frozen=True)
class Stack:
    """Layers of one kind: where MaxText keeps them, and their numbers in the model."""

    native: str
    layers: range

    def sources(self, name: str, shape: tuple[int, ...]) -> tuple[Source, ...]:
        """Hugging Face's `name` of every layer."""
        return tuple(Source(f"model.layers.{layer}.{name}", shape) for layer in self.layers)


def transposed(native: str, name: str, rows: int, columns: int) -> Weight:
    """Native [rows, columns], Hugging Face's the other way round."""

    def locate(wanted: Rows) -> tuple[Rows, Rows]:
        return np.zeros_like(wanted), wanted

    return Weight(native, (rows, columns), (Source(name, (columns, rows)),), locate, stride=rows)


def projection(stack: Stack, native: str, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> Weight:
    """Native [layers, *inputs, *outputs]; a layer's Hugging Face tensor is [outputs, inputs], each flattened."""
    width = prod(inputs)

    def locate(row: Rows) -> Rows:
        """`row` counts inputs and all outputs but the last dimension."""
        each, head = np.divmod(row, prod(outputs[:-1]))
        return head * (outputs[-1] * width) + each

    sources = stack.sources(name, (prod(outputs), width))
    return _layered(stack, native, (*inputs, *outputs), sources, locate, stride=width)


def vectors(stack: Stack, native: str, name: str, shape: Sequence[int], start: Start) -> Weight:
    """Native [layers, *shape]; a layer's Hugging Face tensor is the same, flattened."""
    sources = stack.sources(name, (prod(shape),))
    return _layered(stack, native, shape, sources, lambda row: row * shape[-1], start=start)


def expert_projection(stack: Stack, native: str, name: str, shape: tuple[int, int, int]) -> Weight:
    """Native [layers, *shape] with `shape` [experts, inputs, outputs]; one Hugging Face tensor [outputs, inputs] an
    expert, `name` holding ``{}`` for its number."""
    count, inputs, outputs = shape
    sources = tuple(
        Source(f"model.layers.{layer}.{name.format(expert)}", (outputs, inputs))
        for layer in stack.layers
        for expert in range(count)
    )

    def locate(row: Rows) -> tuple[Rows, Rows]:
        return np.divmod(row, inputs)

    return Weight(f"{stack.native}.{native}", (len(stack.layers), *shape), sources, locate, stride=inputs)


def _layered(
    stack: Stack,
    native: str,
    shape: Sequence[int],
    sources: tuple[Source, ...],
    locate: Callable[[Rows], Rows],
    *,
    stride: int = 1,
    start: Start = "normal",
) -> Weight:
    """Native [layers, *shape], each layer from one of `sources`. locate: row of a layer -> flat offset of its first
    element there."""
    rows = prod(shape[:-1])

    def find(wanted: Rows) -> tuple[Rows, Rows]:
        layer, row = np.divmod(wanted, rows)
        return layer, locate(row)

    return Weight(f"{stack.native}.{native}", (len(sources), *shape), sources, find, stride=stride, start=start)
