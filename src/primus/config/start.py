"""``model.init`` names weights: their ``config.json`` fills the model fields that nothing else sets."""

from __future__ import annotations

from typing import Any

from primus.config.document import Entry, Node
from primus.config.merge import merge
from primus.config.source import Mark, Source
from primus.errors import ConfigError, Problem

FREE = frozenset(
    {"max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "init_std", "routed_scaling_factor"}
)
"""Fields that may differ from the weights' own: they change no tensor's shape (a longer context, say)."""


def start_from_model(tree: Node) -> tuple[Node, list[Problem]]:
    """`tree` laid over the fields of the model that ``model.init`` names, and what is wrong with either.

    Raises ``huggingface.NotFetched`` when it is a Hub id of which nothing is on this machine yet.
    """
    model = tree.value.get("model") if isinstance(tree.value, dict) else None
    if model is None or not isinstance(model.node.value, dict):
        return tree, []
    init = model.node.value.get("init")
    if init is None or not isinstance(init.node.value, str) or init.node.value in ("random", "native"):
        return tree, []
    from primus.config import huggingface

    try:
        fields = huggingface.model_fields(init.node.value)
    except huggingface.NotFetched as error:
        error.problems = tuple(init.node.mark.problem(item.message, item.remedy) for item in error.problems)
        raise
    except ConfigError as error:
        at_init = init.node.mark
        return tree, [
            at_init.problem(problem.message, problem.remedy) if problem.where == "model.init" else problem
            for problem in error.problems
        ]
    problems = [
        entry.node.mark.problem(
            f"model.{name} is {entry.node.plain()}, but {init.node.value} has {fields[name]}",
            "leave the architecture to the weights: drop the key, or the model preset",
        )
        for name, entry in model.node.value.items()
        if name in fields and name not in FREE and entry.node.value is not None and entry.node.plain() != fields[name]
    ]
    written = f"{init.node.value}/config.json"
    mark = Mark(Source("model", written, written))
    base = _node({"model": fields}, mark)
    return merge(base, tree), problems


def _node(value: Any, mark: Mark) -> Node:
    if isinstance(value, dict):
        return Node({key: Entry(mark, _node(item, mark)) for key, item in value.items()}, mark)
    if isinstance(value, list | tuple):
        return Node([_node(item, mark) for item in value], mark)
    return Node(value, mark, text="" if value is None else str(value))
