"""What is in this backend's checkpoints."""

from __future__ import annotations

from pathlib import Path

from primus.backends.pytorch.exchange import Layout
from primus.backends.pytorch.saved import SavedModel
from primus.backends.torchtitan.layout import weights
from primus.config.experiment import Model


def saved_model(directory: Path, model: Model) -> SavedModel:
    return SavedModel(directory, weights(model, fused=False), model)


def layout(model: Model) -> Layout:
    """The optimizer knows parameters as the module has them, with fused projections; a tied one once."""
    trained = [weight for weight in weights(model) if not weight.optional]
    if model.tie_word_embeddings:
        trained = [weight for weight in trained if weight.native != "lm_head.weight"]
    return Layout(weights(model, fused=False), trained)
