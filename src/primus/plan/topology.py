"""Sizes of the parallel axes and of the batch: whole-number arithmetic whose errors name the numbers and a way out."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod

from primus.config.experiment import Experiment, Parallel
from primus.errors import Problem
from primus.plan.plan import Topology

Where = Callable[[str], str]
"""Dotted key -> the place its value came from."""

SEARCH = 4096
"""Steps a search for a near alternative may take: hints must not cost time when the numbers are absurd."""


def resolve(
    experiment: Experiment, *, nnodes: int, nproc: int | None, where: Where = str
) -> tuple[Topology | None, list[Problem]]:
    """The topology of `experiment` on `nnodes` nodes with `nproc` processes each (None: one a device of the hardware
    preset, else 1). Returns it, or None with everything that is wrong."""
    problems: list[Problem] = []
    hardware, parallel, train = experiment.hardware, experiment.parallel, experiment.train
    per_node = nproc if nproc is not None else hardware.devices_per_node or 1
    if nnodes < 1 or per_node < 1:
        return None, [
            Problem("command line", f"{nnodes} nodes x {per_node} processes: nothing would run", "at least 1 of each")
        ]
    if hardware.devices_per_node and per_node > hardware.devices_per_node:
        problems.append(
            Problem(
                "command line",
                f"{per_node} processes a node, but a node of {hardware.name} has {hardware.devices_per_node} devices",
                f"--nproc {hardware.devices_per_node}, or set hardware.devices_per_node",
            )
        )
    world = nnodes * per_node
    data_shard = _data_shard(parallel, world, f"{_count(nnodes, 'node')} x {per_node}", where, problems)
    if data_shard is None:
        return None, problems
    topology = Topology(
        nnodes=nnodes,
        nproc_per_node=per_node,
        data_replicate=parallel.data_replicate,
        data_shard=data_shard,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        context=parallel.context,
        expert=parallel.expert,
        micro_batch_size=train.micro_batch_size,
        microbatches=max(1, train.global_batch_size // (parallel.data_replicate * data_shard * train.micro_batch_size)),
    )
    problems += _batch_problems(train.global_batch_size, topology, where)
    pool = data_shard * parallel.context * parallel.tensor
    if pool % parallel.expert:
        problems.append(
            Problem(
                where("parallel.expert"),
                f"parallel.expert: {parallel.expert} does not divide data_shard {data_shard} x context "
                f"{parallel.context} x tensor {parallel.tensor} = {pool}, the ranks it is taken from",
                f"parallel.expert: {alternatives(parallel.expert, pool)}",
            )
        )
    return (None if problems else topology), problems


def nearest_divisors(value: int, total: int) -> list[int]:
    """The divisors of `total` next below and next above `value`, as far as a short search finds them; never empty."""
    below = range(min(value, total), max(0, min(value, total) - SEARCH), -1)
    above = range(value + 1, min(total, value + SEARCH) + 1)
    found = [next((d for d in side if total % d == 0), None) for side in (below, above)]
    return [d for d in found if d is not None] or [gcd(value, total)]


def nearest_multiples(value: int, unit: int) -> list[int]:
    """The multiples of `unit` next below (if any) and next above `value`."""
    low = value // unit * unit
    return [m for m in (low, low + unit) if m > 0]


def alternatives(value: int, total: int) -> str:
    return either(nearest_divisors(value, total))


def either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


def _data_shard(parallel: Parallel, world: int, machine: str, where: Where, problems: list[Problem]) -> int | None:
    """Resolve `auto`, or check what is given against `world`; None after adding a problem."""
    sizes = {
        "data_replicate": parallel.data_replicate,
        "context": parallel.context,
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
    }
    others = prod(sizes.values())
    if parallel.data_shard != "auto":
        asked = {"data_shard": parallel.data_shard, **sizes}
        needed = others * parallel.data_shard
        if needed == world:
            return parallel.data_shard
        remedies = [f"parallel.data_shard: {world // others} (or auto)"] if world % others == 0 else []
        problems.append(
            Problem(
                where("parallel.data_shard"),
                f"parallel: {_product(asked)} = {needed}, but there are {_count(world, 'process')} ({machine})",
                ", or ".join([*remedies, f"start {_count(needed, 'process')}"]),
            )
        )
        return None
    if world % others == 0:
        return world // others
    remedies = []
    for axis, size in sizes.items():
        rest = others // size
        if size > 1 and world % rest == 0:
            remedies.append(f"parallel.{axis}: {alternatives(size, world // rest)}")
    processes = either(nearest_multiples(world, others))
    largest = max(sizes, key=lambda axis: sizes[axis])
    problems.append(
        Problem(
            where(f"parallel.{largest}"),
            f"parallel: {_product(sizes)} = {others} does not divide {_count(world, 'process')} ({machine})",
            ", or ".join([*remedies, f"start {processes} processes"]),
        )
    )
    return None


def _batch_problems(global_batch: int, topology: Topology, where: Where) -> list[Problem]:
    ranks, micro = topology.data_parallel, topology.micro_batch_size
    unit = ranks * micro
    if global_batch % unit == 0:
        return []
    remedy = f"nearest: {either(nearest_multiples(global_batch, unit))}"
    if global_batch % ranks == 0:
        remedy += f"; or train.micro_batch_size: {alternatives(micro, global_batch // ranks)}"
    return [
        Problem(
            where("train.global_batch_size"),
            f"train.global_batch_size: {global_batch} does not divide by {ranks} x {micro} = {unit} "
            "(data-parallel ranks x micro batch)",
            remedy,
        )
    ]


def _product(sizes: dict[str, int]) -> str:
    """`tensor 2 x pipeline 3`, without the axes of size 1 unless all are."""
    shown = {axis: size for axis, size in sizes.items() if size > 1} or sizes
    return " x ".join(f"{axis} {size}" for axis, size in shown.items())


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
