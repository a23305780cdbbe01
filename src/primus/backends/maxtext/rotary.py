"""The rotary embedding, with frequencies as Hugging Face's models define them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from maxtext.layers.embeddings import RotaryEmbedding

from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.numerics.rotary import frequencies


class Rotary(RotaryEmbedding):  # type: ignore[misc]
    """In the place of MaxText's own where positions are scaled, or where neighbouring elements of a head turn together
    (latent attention). These come out as two halves, of queries and keys alike, so that scores are the same."""

    def __init__(self, model: Model, width: int, mesh: jax.sharding.Mesh, dtype: Any, shard_mode: Any) -> None:
        super().__init__(1, 1, mesh, embedding_dims=width, fprop_dtype=dtype, shard_mode=shard_mode)
        self.model = model

    def __call__(self, inputs: jax.Array, position: jax.Array | None = None) -> jax.Array:
        """inputs [B, S, heads, width], position [B, S] -> inputs turned, in the dtype of forward."""
        assert position is not None
        inverse, magnitude = frequencies(self.model, self.embedding_dims)
        angles = position[:, :, None, None] * jnp.asarray(inverse)
        cos, sin = ((magnitude * turn(angles)).astype(inputs.dtype) for turn in (jnp.cos, jnp.sin))
        if latent_attention(self.model.model_type):
            first, second = inputs[..., 0::2], inputs[..., 1::2]
        else:
            first, second = jnp.split(inputs, 2, axis=-1)
        turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.astype(self.fprop_dtype)
