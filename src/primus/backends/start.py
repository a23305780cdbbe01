"""Where training starts: random weights that are the same on every engine and in every layout, or a Hugging Face
checkpoint. Needs numpy only: an engine puts the values into its own tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primus.checkpoints.safetensors import DTYPES, Entry, entries
from primus.checkpoints.weights import Rows, Values, Weight, lines
from primus.config.experiment import Model
from primus.config.families import COMPOSITES
from primus.errors import CheckpointError, Problem
from primus.numerics.init import normal_at

LISTED = 5
"""Tensors that are named of each kind that is wrong."""
AT_ONCE = 1 << 22
"""Elements looked up at a time in a file. Most are only mapped; those that lie in another order there are copied."""
LANGUAGE = "language_model."
VISION = ("vision_model.", "multi_modal_projector.")
"""How the names of tensors of a model that also sees begin: of its language part, and of the rest."""


def random_values(model: Model, seed: int) -> Values:
    """Weights of two or more dimensions (the embedding and the experts included) are ``model.init_std`` times the
    generator's value at (seed, Hugging Face tensor name, flat index there); norms start at one, biases, attention sinks
    and the router's balancing bias at zero. Projections into the residual stream are not scaled down with depth: one
    standard deviation for all, as in transformers. float32.
    """
    std = np.float32(model.init_std)

    def values(weight: Weight, source: int, offsets: Rows, columns: NDArray[np.int64]) -> NDArray[Any]:
        if weight.start != "normal":
            return np.full((offsets.size, columns.size), 1.0 if weight.start == "ones" else 0.0, np.float32)
        drawn = normal_at(seed, weight.sources[source].name, offsets[:, None] + columns[None, :] * weight.stride)
        drawn *= std
        return drawn

    return values


def huggingface_values(held: Collection[str], weights: Sequence[Weight], model: Model, directory: Path) -> Values:
    """What the safetensors in `directory` hold, as it is stored; of each tensor only what is asked for is read.

    held: native names of the tensors of this rank. Raises CheckpointError with every tensor that is missing, left over,
    of another shape or of a dtype that is not plain floating point.
    """
    found = _language(entries(directory), model)
    problems = compare(model, weights, found, directory)
    if problems:
        raise CheckpointError(problems=problems)
    _check_biases(held, weights, found)
    mapped = lru_cache(maxsize=4)(lambda name: found[name].flat())

    def values(weight: Weight, source: int, offsets: Rows, columns: NDArray[np.int64]) -> NDArray[Any]:
        name = weight.sources[source].name
        if name not in found:
            return np.zeros((offsets.size, columns.size), np.float32)
        return lines(mapped(name), offsets, columns, weight.stride)

    return values


def _language(found: dict[str, Entry], model: Model) -> dict[str, Entry]:
    """Of the tensors of a model that also sees, those of its language part, under the names they have alone; of any
    other, all."""
    if model.model_type not in COMPOSITES.values() or not any(name.startswith(LANGUAGE) for name in found):
        return found
    return {name.removeprefix(LANGUAGE): entry for name, entry in found.items() if not name.startswith(VISION)}


def compare(model: Model, expected: Iterable[Weight], found: dict[str, Entry], directory: Path) -> list[Problem]:
    """Differences between the tensors a model needs and those in a checkpoint."""
    sources = {source.name: (source.shape, weight.optional) for weight in expected for source in weight.sources}
    problems, legal = [], " or ".join(DTYPES)
    remedy = "the weights are of another model than config.json, or not whole"
    missing = [name for name, (_, optional) in sources.items() if not optional and name not in found]
    if missing:
        problems.append(Problem(str(directory), f"missing tensors: {_some(missing)}", remedy))
    extra = [name for name in found if name not in sources and not _ignored(name, model)]
    if extra:
        problems.append(Problem(str(directory), f"tensors that the model has no place for: {_some(extra)}", remedy))
    unfit = []
    for name, entry in found.items():
        shape = sources[name][0] if name in sources else entry.shape
        if entry.shape != shape:
            unfit.append(Problem(str(entry.path), f"{name} is {entry.shape}, the model wants {shape}", remedy))
        elif name in sources and entry.dtype not in DTYPES:
            unfit.append(Problem(str(entry.path), f"{name} is stored as {entry.dtype}", f"convert it to {legal}"))
    problems += unfit[:LISTED]
    if len(unfit) > LISTED:
        problems.append(Problem(str(directory), f"{len(unfit) - LISTED} more tensors do not fit either", remedy))
    return problems


def _ignored(name: str, model: Model) -> bool:
    """Tensors without effect on training: rotary caches of old exports, a copy of a tied embedding, and DeepSeek-V3's
    extra layers for predicting several tokens ahead, which transformers leaves out too."""
    if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and model.tie_word_embeddings):
        return True
    number = name.removeprefix("model.layers.").partition(".")[0]
    return model.model_type == "deepseek_v3" and number.isdigit() and int(number) >= model.num_hidden_layers


def _some(names: list[str], count: int = LISTED) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(sorted(names)[:count]) + rest


def _check_biases(held: Collection[str], expected: Iterable[Weight], found: dict[str, Entry]) -> None:
    """Refuse weights whose router has learnt a balancing bias when this model is built without one."""
    for weight in expected:
        layer = weight.native.rpartition(".")[0] + "."
        if not weight.optional or weight.native in held or not any(name.startswith(layer) for name in held):
            continue
        for source in weight.sources:
            entry = found.get(source.name)
            if entry is not None and _some_value(entry):
                raise CheckpointError(
                    f"{source.name} holds a balancing bias, which moe.balance: none leaves out",
                    where=str(entry.path),
                    remedy="set moe.balance to bias",
                )


def _some_value(entry: Entry) -> bool:
    """Whether anything in it is not zero."""
    flat = entry.flat()
    return bool((flat & 0x7FFF if entry.dtype == "BF16" else flat).any())
