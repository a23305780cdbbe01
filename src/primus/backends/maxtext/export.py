"""Moving a run between engines, and export, for checkpoints that orbax wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from primus.backends.base import Progress
from primus.backends.exchange import Between, Format, Layout, native_values
from primus.backends.maxtext.layout import weights
from primus.backends.maxtext.saved import Saved, Writer
from primus.config.experiment import Model


def layout(model: Model) -> Layout:
    everything = weights(model)
    return Layout(everything, [weight for weight in everything if not weight.optional])


FORMAT = Format(layout, Saved)


def import_state(backend: str, directory: Path, checkpoint: Path, progress: Progress) -> None:
    """See ``backends.base.Exchange``; `backend` is the name to write down."""
    between = Between(directory)
    listed, writer = between.wanted(layout), Writer(checkpoint)
    for done, each in enumerate(listed):
        progress(done, len(listed))
        writer.write(each.part, each.weight, partial(native_values, found=each.found))
    writer.finish()
    progress(len(listed), len(listed))
    between.seal(checkpoint, backend, {})
