"""How the layers are split over pipeline stages: as planned, or as the experiment's own keys of Megatron say.

Needs neither torch nor Megatron. Stages are numbered in the order in which a microbatch passes them; with virtual
stages a rank holds every ``pipeline``-th.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.backends.pytorch.stages import stage_sizes
from primus.config.experiment import Experiment
from primus.errors import Problem
from primus.plan.plan import Topology

LAYOUT = "pipeline_model_parallel_layout"
ENDS = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
COUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
WORDS = ("embedding", "decoder", "loss")
KEYS = frozenset({LAYOUT, *ENDS, *COUNTED})
"""Fields of TransformerConfig that say how layers are split. Megatron takes one of the three ways."""


def either(values: list[int]) -> str:
    return " or ".join(map(str, values))


def stages(layers: int, count: int) -> list[list[str]]:
    """What each of `count` pipeline stages holds, in order."""
    parts = [["decoder"] * size for size in stage_sizes(layers, count)]
    return [["embedding", *parts[0]], *parts[1:-1], [*parts[-1], "loss"]]


def problems(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with the keys of ``transformer`` in `own` that split the layers of a pipeline."""
    ways = [[name for name in way if own.get(name) not in (None, False)] for way in ((LAYOUT,), ENDS, COUNTED)]
    used = [way[0] for way in ways if way]
    if len(used) > 1:
        yield Problem(
            f"megatron.transformer.{used[1]}",
            f"the layers are split by megatron.transformer.{used[0]} already",
            "one of them",
        )
    elif ways[0]:
        yield from _layout(experiment, topology, own[LAYOUT])
    elif ways[1]:
        yield from _ends(experiment, topology, own)
    elif ways[2]:
        yield from _counted(experiment, topology, own)


def _layout(experiment: Experiment, topology: Topology, layout: Any) -> Iterator[Problem]:
    key, layers = f"megatron.transformer.{LAYOUT}", experiment.model.num_hidden_layers
    count = topology.pipeline * experiment.parallel.virtual_pipeline
    remedy = f"e.g. {stages(layers, count)}" if count <= layers <= 8 else "a list of lists of these words"
    if not all(isinstance(stage, list) and all(word in WORDS for word in stage) for stage in layout):
        yield Problem(key, "each stage is a list of the words embedding, decoder and loss", remedy)
        return
    if len(layout) != count:
        virtual = experiment.parallel.virtual_pipeline
        made = f"parallel.pipeline {topology.pipeline}" + (f" x virtual_pipeline {virtual}" if virtual > 1 else "")
        yield Problem(key, f"it has {len(layout)} stages, but {made} make {count}", remedy)
        return
    words = [word for stage in layout for word in stage]
    ordered = layout[0][:1] == ["embedding"] and layout[-1][-1:] == ["loss"]
    if not ordered or words.count("embedding") != 1 or words.count("loss") != 1:
        yield Problem(key, "the first stage begins with the one embedding, the last ends with the one loss", remedy)
    if (found := words.count("decoder")) != layers:
        yield Problem(key, f"it places {found} layers of {layers}", remedy)


def _ends(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> Iterator[Problem]:
    virtual = experiment.parallel.virtual_pipeline
    given = [name for name in ENDS if own.get(name)]
    for name in given:
        if own[name] < 1 or own[name] % virtual:
            each = f"a multiple of {virtual}, the chunks of a rank" if virtual > 1 else "1 or more"
            yield Problem(f"megatron.transformer.{name}", f"{own[name]} layers on a rank cannot be", each)
            return
    layers = experiment.model.num_hidden_layers - sum(own[name] for name in given)
    ranks = topology.pipeline - len(given)
    chunks = ranks * virtual
    if layers < 0 or bool(layers) != bool(ranks) or (chunks and layers % chunks):
        over = f"{chunks} stages" if ranks else "no stage"
        keys = " and ".join(f"megatron.transformer.{name}" for name in given)
        yield Problem(
            f"megatron.transformer.{given[0]}",
            f"{layers} layers are left for {over} in between",
            f"another number in {keys}, so that the rest divides; or megatron.transformer.{LAYOUT}",
        )


def _counted(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> Iterator[Problem]:
    given = [name for name in COUNTED if own.get(name)]
    weight, chunks = experiment.model.num_hidden_layers + len(given), topology.pipeline * _virtual(experiment)
    if weight % chunks:
        yield Problem(
            f"megatron.transformer.{given[0]}",
            f"{weight} layers, {'embedding and loss' if len(given) > 1 else 'one of the ends'} counted, do not divide "
            f"by {chunks} stages",
            f"remove it: stages are then planned so; or megatron.transformer.{LAYOUT}",
        )


def layers_of_stages(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> list[int]:
    """Layers of every stage, for `own` keys with which nothing is wrong."""
    layers, virtual = experiment.model.num_hidden_layers, _virtual(experiment)
    count = topology.pipeline * virtual
    if own.get(LAYOUT):
        return [stage.count("decoder") for stage in own[LAYOUT]]
    ends = [own.get(name) for name in ENDS]
    if any(ends):
        middle = topology.pipeline - sum(1 for end in ends if end)
        each = (layers - sum(end or 0 for end in ends)) // middle if middle else 0
        ranks = [ends[0] or each, *[each] * (topology.pipeline - 2), ends[1] or each]
        return [size // virtual for size in ranks] * virtual
    if any(own.get(name) for name in COUNTED):
        sizes = [(layers + sum(bool(own.get(name)) for name in COUNTED)) // count] * count
        sizes[0] -= bool(own.get(COUNTED[0]))
        sizes[-1] -= bool(own.get(COUNTED[1]))
        return sizes
    if layers % count:
        return [stage.count("decoder") for stage in stages(layers, count)]
    return [layers // count] * count


def _virtual(experiment: Experiment) -> int:
    return experiment.parallel.virtual_pipeline
