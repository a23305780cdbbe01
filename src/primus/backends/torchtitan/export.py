"""What is in this backend's checkpoints."""

from __future__ import annotations

from primus.backends.exchange import Format, Layout
from primus.backends.pytorch.exchange import read
from primus.backends.torchtitan.layout import weights
from primus.config.experiment import Model


def layout(model: Model) -> Layout:
    """The optimizer knows parameters as the module has them, with fused projections; a tied one once."""
    trained = [weight for weight in weights(model) if not weight.optional]
    if model.tie_word_embeddings:
        trained = [weight for weight in trained if weight.native != "lm_head.weight"]
    return Layout(weights(model, fused=False), trained)


FORMAT = Format(layout, read)
