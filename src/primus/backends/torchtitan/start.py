"""Where training starts, for the parts of a TorchTitan model on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from primus.backends.pytorch import start
from primus.backends.pytorch.shards import Shard
from primus.backends.torchtitan.layout import weights
from primus.backends.torchtitan.shards import shards
from primus.checkpoints.weights import Weight
from primus.config.experiment import Model


def random_start(model_parts: Sequence[nn.Module], model: Model, seed: int) -> None:
    """Random weights that are the same in every layout; see ``pytorch.start``."""
    expected = weights(model)
    start.random_start(_shards(model_parts, expected), expected, model, seed)


def load_huggingface(model_parts: Sequence[nn.Module], model: Model, directory: Path) -> None:
    """The weights of a Hugging Face directory; see ``pytorch.start``."""
    expected = weights(model)
    start.load_huggingface(_shards(model_parts, expected), expected, model, directory)


def _shards(model_parts: Sequence[nn.Module], expected: Sequence[Weight]) -> list[Shard]:
    return list(shards(model_parts, {weight.native for weight in expected}))
