"""The start of training in this rank's tensors, in place, without communication."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from primus.backends.pytorch.shards import Shard, fill
from primus.backends.start import AT_ONCE, huggingface_values, random_values
from primus.checkpoints.weights import Weight
from primus.config.experiment import Model


def random_start(shards: Iterable[Shard], weights: Iterable[Weight], model: Model, seed: int) -> None:
    """Fill every parameter of this rank by ``random_values``. Memory: a few hundred kilobytes beyond the model."""
    fill(shards, weights, random_values(model, seed))


def load_huggingface(shards: Sequence[Shard], weights: Sequence[Weight], model: Model, directory: Path) -> None:
    """Fill every parameter of this rank by ``huggingface_values``, which refuses what does not fit before anything is
    changed."""
    values = huggingface_values({shard.name for shard in shards}, weights, model, directory)
    fill(shards, weights, values, AT_ONCE)
