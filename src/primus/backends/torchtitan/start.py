"""Where training starts: random weights that are the same in every layout, or a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from primus.backends.torchtitan.layout import weights
from primus.backends.torchtitan.shards import fill
from primus.backends.torchtitan.weights import Rows, Weight
from primus.config.experiment import Model
from primus.numerics.init import normal_at


def random_start(model_parts: Sequence[nn.Module], model: Model, seed: int) -> None:
    """Fill every parameter of this rank, in place, without communication.

    Weights of two or more dimensions (the embedding and the experts included) are ``model.init_std`` times the
    generator's value at (seed, Hugging Face tensor name, flat index there); norms start at one, biases, attention sinks
    and the router's balancing bias at zero. Projections into the residual stream are not scaled down with depth: one
    standard deviation for all, as in transformers. Memory: a few hundred kilobytes beyond the model.
    """
    std = np.float32(model.init_std)

    def values(weight: Weight, source: int, offsets: Rows, columns: NDArray[np.int64]) -> NDArray[np.float32]:
        if weight.start != "normal":
            return np.full((offsets.size, columns.size), 1.0 if weight.start == "ones" else 0.0, np.float32)
        drawn = normal_at(seed, weight.sources[source].name, offsets[:, None] + columns[None, :] * weight.stride)
        drawn *= std
        return drawn

    fill(model_parts, weights(model), values)
