"""Moving a run between engines: a checkpoint as Hugging Face-named fp32 tensors, and back.

The directory in between holds three safetensors directories, ``weights``, ``exp_avg`` and ``exp_avg_sq``, and
``state.json`` with the step, the consumed samples and the model. No engine is needed for either half, and no process
group; tensors pass one at a time.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from primus.backends.base import Progress
from primus.backends.pytorch.pieces import Made
from primus.backends.pytorch.saved import SavedTensors
from primus.backends.pytorch.shards import as_tensor
from primus.backends.pytorch.storage import HashingWriter
from primus.checkpoints import safetensors
from primus.checkpoints.integrity import read_manifest, seal
from primus.checkpoints.safetensors import Entry, entries
from primus.checkpoints.weights import Weight, lines, runs
from primus.config.experiment import Model
from primus.errors import CheckpointError


@dataclass(frozen=True)
class Layout:
    """An engine's tensors in its checkpoints: all of them, and those of which the optimizer keeps moments, which may be
    cut otherwise."""

    weights: Sequence[Weight]
    trained: Sequence[Weight]

    def of(self, part: str) -> Sequence[Weight]:
        return self.weights if part == "weights" else self.trained


LayoutOf = Callable[[Model], Layout]

STATE = "state.json"
PARTS = ("weights", "exp_avg", "exp_avg_sq")


def _name_of(part: str, native: str) -> str:
    """Under which name the weight `native`, or a moment of it, is in a checkpoint of either engine."""
    return native if part == "weights" else f"optimizer.{native}.{part}"


def export_state(layout: LayoutOf, checkpoint: Path, directory: Path, progress: Progress) -> None:
    """See ``backends.base.Exchange``."""
    info = read_manifest(checkpoint)
    tensors = layout(Model.model_validate(info.model, strict=False))
    parts = {part: SavedTensors(checkpoint, tensors.of(part), partial(_name_of, part)) for part in PARTS}
    known = {_name_of(part, weight.native) for part in PARTS for weight in tensors.of(part)}
    if unknown := sorted(parts["weights"].names - known):
        raise CheckpointError(
            f"{unknown[0]} and {len(unknown) - 1} more tensors have no place in another engine",
            where=str(checkpoint),
            remedy="go on with the engine that trained them; or export the weights with --output",
        )
    total, done = sum(len(saved.sources) for saved in parts.values()), 0

    def counted(items: Iterator[tuple[str, NDArray[np.float32]]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        nonlocal done
        for item in items:
            yield item
            done += 1
            progress(done, total)

    for part, saved in parts.items():
        (directory / part).mkdir()
        shapes = {source.name: source.shape for source in saved.sources}
        safetensors.write(directory / part, shapes, counted(saved.tensors()), "float32")
    state = {"step": info.step, "consumed_samples": info.consumed_samples, "model": info.model}
    (directory / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def import_state(layout: LayoutOf, backend: str, directory: Path, checkpoint: Path, progress: Progress) -> None:
    """See ``backends.base.Exchange``; `backend` is the name to write down."""
    facts = json.loads((directory / STATE).read_text(encoding="utf-8"))
    tensors = layout(Model.model_validate(facts["model"], strict=False))
    state: dict[str, Any] = {}
    done = 0

    def made(weight: Weight, found: dict[str, Entry]) -> torch.Tensor:
        nonlocal done
        tensor = _whole(weight, found)
        done += 1
        progress(done, len(state))
        return tensor

    for part in PARTS:
        found = entries(directory / part)
        for weight in tensors.of(part):
            absent = [source.name for source in weight.sources if source.name not in found]
            if absent and not weight.optional:
                raise CheckpointError(f"{part} lacks {absent[0]}", where=str(directory))
            if not absent:
                state[_name_of(part, weight.native)] = Made(weight.shape, partial(made, weight, found))
    writer = HashingWriter(checkpoint, threads=1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*assuming the intent is to save in a single process.*")
            save(state, storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        cause: BaseException = next(iter(error.failures.values()))[0]
        if not isinstance(cause, Exception):  # a person's Ctrl+C is no fault of the checkpoint
            raise cause from error
        raise CheckpointError(str(cause), where=str(checkpoint)) from error
    seal(
        checkpoint,
        step=facts["step"],
        consumed_samples=facts["consumed_samples"],
        model=facts["model"],
        backend=backend,
        digests=writer.digests,
    )


def _whole(weight: Weight, found: dict[str, Entry]) -> torch.Tensor:
    """The native tensor `weight`, from the Hugging Face tensors `found`: mapped, if it lies there as it is."""
    which, offsets = weight.locate(np.arange(weight.rows, dtype=np.int64))
    columns = np.arange(weight.columns, dtype=np.int64)
    parts = []
    for first, last in runs(which):
        entry = found[weight.sources[which[first]].name]
        parts.append(as_tensor(lines(entry.flat(), offsets[first:last], columns, weight.stride)))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.float().contiguous().view(weight.shape)
