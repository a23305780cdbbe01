"""On how few nodes a run may go on, when not all that it asks for are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from primus.errors import PlanError
from primus.plan import topology
from primus.plan.finding import count, either
from primus.plan.plan import Plan
from primus.plan.planner import replan

if TYPE_CHECKING:
    from primus.config.load import Resolved

KEY = "resilience.min_nodes"


def fewest_nodes(resolved: Resolved, plan: Plan, asked: int = 0) -> int:
    """The fewest nodes that will do for `plan`, of `resolved`, by ``resilience.min_nodes`` or `asked`, the place's own
    ``-N MIN-MAX``; 0: all are needed. Raises PlanError when these two differ, or when the run cannot be split over so
    few, which nobody shall find out when a node is lost."""
    nodes, wanted = plan.topology.nnodes, plan.experiment.resilience.min_nodes or 0
    if wanted and asked and wanted != asked:
        message = f"{KEY}: {wanted}, but slurm -N {asked}-{nodes} says {asked}"
        raise PlanError(
            problems=[resolved.problem(KEY, message, f"slurm -N {nodes} with {KEY}={asked}, or without it")]
        )
    fewest = asked or wanted
    if not 0 < fewest < nodes:
        return 0
    try:
        replan(plan, nnodes=fewest)
    except PlanError as error:
        message = f"the run cannot be split over {count(fewest, 'node')}: {error.problems[0].message}"
        remedy = f"{either(_nearest(plan, fewest))} instead of {fewest}"
        if plan.experiment.parallel.data_shard != "auto":
            remedy += ", or parallel.data_shard: auto, which follows the number of nodes"
        if asked:
            raise PlanError(message, where=f"slurm -N {asked}-{nodes}", remedy=remedy) from error
        raise PlanError(problems=[resolved.problem(KEY, f"{KEY}: {fewest}, but {message}", remedy)]) from error
    return fewest


def waits_for_all(plan: Plan, place: str, otherwise: str) -> str:
    """What to say where `place` cannot do with fewer nodes than it was given although the experiment could; else
    empty. otherwise: what a person can do."""
    nodes, fewest = plan.topology.nnodes, plan.experiment.resilience.min_nodes or 0
    return f"{KEY}: {fewest}: {place} waits for all {nodes} nodes; {otherwise}" if 0 < fewest < nodes else ""


def _nearest(plan: Plan, nodes: int) -> list[int]:
    """The numbers of nodes next to `nodes`, below and above, over which the run can be split."""
    resilience = plan.experiment.resilience.model_copy(update={"min_nodes": None})
    free = plan.model_copy(update={"experiment": plan.experiment.model_copy(update={"resilience": resilience})})
    below = next((number for number in range(nodes - 1, 0, -1) if _fits(free, number)), 0)
    above = next((number for number in range(nodes + 1, plan.topology.nnodes) if _fits(free, number)), 0)
    return [*([below] if below else []), above or plan.topology.nnodes]


def _fits(plan: Plan, nodes: int) -> bool:
    arranged, wrong = topology.resolve(plan.experiment, nnodes=nodes, nproc=plan.topology.nproc_per_node)
    if arranged is None or wrong:
        return False
    try:
        replan(plan, nnodes=nodes)
    except PlanError:
        return False
    return True
