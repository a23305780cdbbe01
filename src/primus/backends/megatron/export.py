"""What is in this backend's checkpoints."""

from __future__ import annotations

from pathlib import Path

from primus.backends.megatron.layout import weights
from primus.backends.pytorch.exchange import Layout
from primus.backends.pytorch.saved import SavedModel
from primus.config.experiment import Model


def saved_model(directory: Path, model: Model) -> SavedModel:
    return SavedModel(directory, weights(model), model)


def layout(model: Model) -> Layout:
    everything = weights(model)
    return Layout(everything, [weight for weight in everything if not weight.optional])
