"""Parameters on pipeline stages, seen as without a pipeline: the layer is the first dimension.

MaxText keeps them as [repeats, stages, layers of a stage, ...], without repeats and layers of a stage where those are
one. In that order they are the layers of the model in theirs.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

PIPELINED = "decoder.pipeline_module.layers."
STACKED = "scanned_layers."
"""What the layers of a stage are called where there are several."""
AXIS = "stage"


class Staged:
    """A variable of a pipeline as one of ``[layers, ...]``."""

    def __init__(self, variable: Any, *, stacked: bool) -> None:
        self._variable, self._stacked = variable, stacked

    def get_value(self) -> jax.Array:
        array = self._variable.get_value()
        split = array.sharding.spec
        first = split.index(AXIS) + 1 + self._stacked
        whole = NamedSharding(array.sharding.mesh, PartitionSpec(AXIS, *split[first:]))
        return _reshaped(array, (-1, *array.shape[first:]), whole)

    def set_value(self, value: jax.Array) -> None:
        array = self._variable.get_value()
        self._variable.set_value(_reshaped(value, array.shape, array.sharding))


def without_stages(variables: dict[str, Any]) -> dict[str, Any]:
    """`variables` under the names and in the shapes that they have without a pipeline."""
    return {
        name.replace(PIPELINED + STACKED, PIPELINED).replace(PIPELINED, "decoder.layers."): Staged(
            variable, stacked=name.startswith(PIPELINED + STACKED)
        )
        if name.startswith(PIPELINED)
        else variable
        for name, variable in variables.items()
    }


def _reshaped(array: jax.Array, shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.jit(_reshape, static_argnums=1, out_shardings=sharding)(array, shape)


def _reshape(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return array.reshape(shape)
