"""What an engine's checkpoint holds, tensor by tensor under Hugging Face's names: for the engine that goes on with a
run, and for export. Needs numpy only; an engine adds how its files are read and written.

Between two engines lies a directory with three safetensors directories, ``weights``, ``exp_avg`` and ``exp_avg_sq``,
and ``state.json`` with the step, the consumed samples and the model. No engine is needed for either half, and no
process group; tensors pass one at a time.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primus.backends.base import Progress
from primus.checkpoints import safetensors
from primus.checkpoints.integrity import CheckpointInfo, read_manifest, seal
from primus.checkpoints.safetensors import Entry, entries
from primus.checkpoints.weights import BLOCK, Rows, Source, Weight, lines, runs, to_huggingface
from primus.config.experiment import Model
from primus.errors import CheckpointError

STATE = "state.json"
PARTS = ("weights", "exp_avg", "exp_avg_sq")
TILE = 1 << 15
"""Elements of a transposed tensor that are copied at a time, of at most 256 columns."""


@dataclass(frozen=True)
class Layout:
    """An engine's tensors in its checkpoints: all of them, and those of which the optimizer keeps moments, which may be
    cut otherwise."""

    weights: Sequence[Weight]
    trained: Sequence[Weight]

    def of(self, part: str) -> Sequence[Weight]:
        return self.weights if part == "weights" else self.trained


LayoutOf = Callable[[Model], Layout]


class SavedTensors(ABC):
    """Those of the checkpoint in `directory` that `weights` describe, under Hugging Face's names. An engine's subclass
    reads them.

    shapes: of every tensor in the checkpoint, described or not. stored: name of a weight -> name under which it, or
    what belongs to it, is in the checkpoint. Raises CheckpointError when tensors are missing or of another shape.
    """

    def __init__(
        self,
        directory: Path,
        shapes: Mapping[str, tuple[int, ...]],
        weights: Sequence[Weight],
        stored: Callable[[str], str],
    ) -> None:
        self.directory, self.stored = directory, stored
        seen: set[str] = set()
        self._weights: list[Weight] = []
        for weight in weights:
            name = stored(weight.native)
            if name not in shapes and not weight.optional:
                raise CheckpointError(f"the checkpoint lacks {name}", where=str(directory))
            if shapes.get(name, weight.shape) != weight.shape:
                found = f"{name} is {shapes[name]}, the model wants {weight.shape}"
                raise CheckpointError(found, where=str(directory))
            if name not in shapes and weight.ours:
                continue
            if not seen.issuperset(names := [source.name for source in weight.sources]):
                self._weights.append(weight)  # a tied output projection comes after the embedding, and is left out
                seen.update(names)
        self._present = {weight.native for weight in self._weights if stored(weight.native) in shapes}
        self.unknown = sorted(shapes.keys() - {stored(weight.native) for weight in weights})
        """What is there beside, by its name in the checkpoint."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, in the order of ``tensors``."""
        return {source.name: source.shape for source in self._sources()}

    def _sources(self) -> Iterator[Source]:
        return (source for weight in self._weights for source in weight.sources)

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Name and values of every tensor."""
        for whole in self._weights:
            for weight, values in self._native(whole):
                converted = to_huggingface(weight, values)
                for source, tensor in zip(weight.sources, converted, strict=True):
                    yield source.name, tensor

    def _native(self, weight: Weight) -> Iterator[tuple[Weight, NDArray[np.float32]]]:
        """The native tensor `weight`, zeros when it is optional and not there: whole, or in parts with sources of
        their own."""
        if weight.native in self._present:
            yield from self.read(weight)
        else:
            yield weight, np.zeros(weight.shape, np.float32)

    @abstractmethod
    def read(self, weight: Weight) -> Iterator[tuple[Weight, NDArray[np.float32]]]:
        """The native tensor `weight`, which is there: whole, or in parts with sources of their own."""

    @staticmethod
    def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """See ``safetensors.narrowed``."""
        return safetensors.narrowed(values, dtype)

    def keep_to_huggingface(self, model: Model) -> None:
        """Leave out what Hugging Face's format has no place for. Raises CheckpointError when it means something."""
        if model.model_type == "deepseek_v3" and model.scoring_func == "softmax":
            raise CheckpointError(
                "this model routes by softmax, but deepseek_v3 in Hugging Face's format always by sigmoid",
                where="model.scoring_func",
            )
        for weight in (weight for weight in self._weights if weight.ours):
            if any(values.any() for _, values in self._native(weight)):
                raise CheckpointError(
                    f"{weight.native} is a balancing bias, which Hugging Face's format has no place for",
                    where=str(self.directory),
                    remedy="train with moe.balance: none to export",
                )
        self._weights = [weight for weight in self._weights if not weight.ours]


Read = Callable[[Path, Sequence[Weight], str], SavedTensors]
"""(checkpoint, what is in it of one of ``PARTS``, the part) -> those tensors."""


@dataclass(frozen=True)
class Format:
    """How an engine keeps a model and its moments in a checkpoint. Both exports are those of
    ``backends.base.Exchange``."""

    layout: LayoutOf
    read: Read

    def export_weights(self, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        if dtype not in safetensors.WRITTEN:
            raise CheckpointError(f"no such dtype: {dtype}", where="--dtype", remedy=" or ".join(safetensors.WRITTEN))
        model = Model.model_validate(read_manifest(checkpoint).model, strict=False)
        saved = self.read(checkpoint, self.layout(model).weights, "weights")
        saved.keep_to_huggingface(model)
        write = _Counted(progress, len(saved.shapes))
        write(saved, directory, dtype)

    def export_state(self, checkpoint: Path, directory: Path, progress: Progress) -> None:
        info = read_manifest(checkpoint)
        tensors = self.layout(Model.model_validate(info.model, strict=False))
        parts = {part: self.read(checkpoint, tensors.of(part), part) for part in PARTS}
        if unknown := sorted(set.intersection(*(set(saved.unknown) for saved in parts.values()))):
            raise CheckpointError(
                f"{unknown[0]} and {len(unknown) - 1} more tensors have no place in another engine",
                where=str(checkpoint),
                remedy="go on with the engine that trained them; or export the weights with --output",
            )
        write = _Counted(progress, sum(len(saved.shapes) for saved in parts.values()))
        for part, saved in parts.items():
            (directory / part).mkdir()
            write(saved, directory / part, "float32")
        state = {"step": info.step, "consumed_samples": info.consumed_samples, "model": info.model}
        (directory / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


class _Counted:
    """Writes tensors and tells `progress` how many of `total` are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def __call__(self, saved: SavedTensors, directory: Path, dtype: str) -> None:
        safetensors.write(directory, saved.shapes, self._passing(saved.tensors()), dtype, narrow=saved.narrowed)
        self._progress(self._done, self._total)

    def _passing(self, tensors: Iterator[tuple[str, NDArray[np.float32]]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for item in tensors:
            self._progress(self._done, self._total)
            self._done += 1
            yield item


@dataclass(frozen=True)
class Wanted:
    """One native tensor of a checkpoint that is made, and the Hugging Face tensors that are there."""

    part: str
    weight: Weight
    found: Mapping[str, Entry]


class Between:
    """What ``export_state`` has written into `directory`. Raises CheckpointError when it is not whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        facts = json.loads((directory / STATE).read_text(encoding="utf-8"))
        self.step: int = facts["step"]
        self.consumed_samples: int = facts["consumed_samples"]
        self.model: dict[str, Any] = facts["model"]

    def wanted(self, layout: LayoutOf) -> list[Wanted]:
        """Every native tensor that `layout` has, but for optional ones that are not there."""
        tensors = layout(Model.model_validate(self.model, strict=False))
        listed = []
        for part in PARTS:
            found = entries(self._directory / part)
            for weight in tensors.of(part):
                absent = [source.name for source in weight.sources if source.name not in found]
                if absent and not weight.optional:
                    raise CheckpointError(f"{part} lacks {absent[0]}", where=str(self._directory))
                if not absent:
                    listed.append(Wanted(part, weight, found))
        return listed

    def seal(self, checkpoint: Path, backend: str, digests: Mapping[str, str]) -> CheckpointInfo:
        """Make the files in `checkpoint` a complete one of `backend`. digests: of those that are hashed already."""
        return seal(
            checkpoint,
            step=self.step,
            consumed_samples=self.consumed_samples,
            model=self.model,
            backend=backend,
            digests=digests,
        )


def native_values(
    weight: Weight, space: NDArray[np.float32] | None = None, *, found: Mapping[str, Entry]
) -> NDArray[np.float32]:
    """The native tensor `weight`, from the fp32 tensors `found`: mapped, if it lies there as it is; else in `space`,
    which has as many elements, or in new memory."""
    which, offsets = weight.locate(np.arange(weight.rows, dtype=np.int64))
    columns = np.arange(weight.columns, dtype=np.int64)
    if weight.stride == 1 and not which.any() and (np.diff(offsets) == weight.columns).all():
        return lines(found[weight.sources[0].name].flat(), offsets, columns, 1).reshape(weight.shape)
    whole = (np.empty(weight.shape, np.float32) if space is None else space).reshape(weight.rows, weight.columns)
    for first, last in runs(which):
        flat, there = found[weight.sources[which[first]].name].flat(), whole[first:last]
        for rows, part in _tiles(offsets[first:last], weight):
            there[rows, part] = lines(flat, offsets[first:last][rows], columns[part], weight.stride)
    return whole.reshape(weight.shape)


def _tiles(offsets: Rows, weight: Weight) -> Iterator[tuple[slice, slice]]:
    """Rows at `offsets` of a source, and columns, in parts that the processor's cache holds. Where the source lies the
    other way round, those rows are taken together that begin at neighbours there: 2 to 3 times as fast."""
    apart, tall, wide = 1, max(1, BLOCK // weight.columns), weight.columns
    if weight.stride != 1:
        after = np.flatnonzero(offsets == offsets[0] + 1)
        wide = min(weight.columns, 256)
        apart, tall = int(after[0]) if after.size else 1, TILE // wide
    for lane in range(apart):
        for top in range(lane, offsets.size, tall * apart):
            for left in range(0, weight.columns, wide):
                yield slice(top, top + tall * apart, apart), slice(left, left + wide)
