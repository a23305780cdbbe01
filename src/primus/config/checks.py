"""Checks between keys that need nothing but the experiment."""

from __future__ import annotations

from primus.config.document import Node
from primus.config.experiment import Experiment
from primus.errors import Problem


def check(experiment: Experiment | None, tree: Node) -> list[Problem]:
    """Contradictions in `experiment`, each at its place in `tree`."""
    return []
