"""What is in this backend's checkpoints."""

from __future__ import annotations

from primus.backends.exchange import Format, Layout
from primus.backends.megatron.layout import weights
from primus.backends.pytorch.exchange import read
from primus.config.experiment import Model


def layout(model: Model) -> Layout:
    everything = weights(model)
    return Layout(everything, [weight for weight in everything if not weight.optional])


FORMAT = Format(layout, read)
