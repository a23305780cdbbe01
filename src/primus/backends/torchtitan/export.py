"""The model inside one of this backend's checkpoints."""

from __future__ import annotations

from pathlib import Path

from primus.backends.pytorch.saved import SavedModel
from primus.backends.torchtitan.layout import weights
from primus.config.experiment import Model


def saved_model(directory: Path, model: Model) -> SavedModel:
    return SavedModel(directory, weights(model, fused=False), model)
