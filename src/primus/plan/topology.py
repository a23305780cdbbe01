"""Sizes of the parallel axes and of the batch: whole-number arithmetic whose errors name the numbers and a way out."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from primus.config.experiment import Experiment, Parallel
from primus.config.nearest import nearest_divisors, nearest_multiples
from primus.plan.finding import Finding, count, either, product
from primus.plan.plan import Topology


def resolve(experiment: Experiment, *, nnodes: int, nproc: int | None) -> tuple[Topology | None, list[Finding]]:
    """The topology of `experiment` on `nnodes` nodes with `nproc` processes each (None: one a device of the hardware
    preset, else 1), and everything that is wrong with it. None when the axes do not make up the world."""
    hardware, parallel, train = experiment.hardware, experiment.parallel, experiment.train
    per_node = nproc if nproc is not None else hardware.devices_per_node or 1
    findings: list[Finding] = []
    for option, value in (("--nnodes", nnodes), ("--nproc", per_node)):
        if value < 1:
            findings.append(Finding(option, f"{option} {value} starts nothing", f"{option} 1 or more"))
    if findings:
        return None, findings
    if hardware.devices_per_node and per_node > hardware.devices_per_node:
        has = f"a node of {hardware.name} has {count(hardware.devices_per_node, 'device')}"
        findings.append(
            Finding("--nproc", f"--nproc {per_node}, but {has}", f"--nproc {hardware.devices_per_node} at most")
        )
    world = nnodes * per_node
    machine = f"{count(world, 'process')} ({count(nnodes, 'node')} x {per_node})"
    data_shard = parallel.data_shard
    if data_shard == "auto":
        others = prod(_sizes(parallel).values())
        if world % others:
            return None, [*findings, _no_fit(parallel, world, machine)]
        data_shard = world // others
    elif data_shard * prod(_sizes(parallel).values()) != world:
        return None, [*findings, _no_match(parallel, data_shard, world, machine)]
    unit = parallel.data_replicate * data_shard * train.micro_batch_size
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
        microbatches=max(1, train.global_batch_size // unit),
        replica_groups=parallel.data_replicate if experiment.resilience.fault_tolerance == "torchft" else 1,
    )
    findings += [*_batch(train.global_batch_size, topology), *_expert(topology)]
    if experiment.resilience.fault_tolerance == "torchft":
        findings += _replica_groups(topology)
    return topology, findings


def _sizes(parallel: Parallel) -> dict[str, int]:
    """The axes beside data_shard that multiply to the world. Experts share the ranks of other axes."""
    return {axis: getattr(parallel, axis) for axis in ("data_replicate", "context", "tensor", "pipeline")}


def _no_fit(parallel: Parallel, world: int, machine: str) -> Finding:
    sizes = _sizes(parallel)
    total = prod(sizes.values())
    remedies = []
    for axis, size in sizes.items():
        rest = total // size
        if size > 1 and world % rest == 0:
            remedies.append(f"parallel.{axis}: {either(nearest_divisors(size, world // rest))}")
    remedies.append(f"start {either(nearest_multiples(world, total))} processes")
    largest = max(sizes, key=lambda axis: sizes[axis])
    return Finding(
        f"parallel.{largest}",
        f"parallel: {product(sizes)} does not divide {machine}",
        ", or ".join(remedies),
    )


def _no_match(parallel: Parallel, data_shard: int, world: int, machine: str) -> Finding:
    sizes = {"data_shard": data_shard, **_sizes(parallel)}
    total = prod(sizes.values())
    others = total // data_shard
    remedies = [f"parallel.data_shard: {world // others} (or auto)"] if world % others == 0 else []
    remedies.append(f"start {count(total, 'process')}")
    return Finding(
        "parallel.data_shard",
        f"parallel: {product(sizes)}, but there are {machine}",
        ", or ".join(remedies),
    )


def _batch(global_batch: int, topology: Topology) -> Iterator[Finding]:
    ranks, micro = topology.data_parallel, topology.micro_batch_size
    unit = ranks * micro
    if global_batch % unit == 0:
        return
    remedy = f"nearest: {either(nearest_multiples(global_batch, unit))}"
    if global_batch % ranks == 0:
        remedy += f"; or train.micro_batch_size: {either(nearest_divisors(micro, global_batch // ranks))}"
    yield Finding(
        "train.global_batch_size",
        f"train.global_batch_size: {global_batch} does not divide by {ranks} x {micro} = {unit} "
        "(data-parallel ranks x micro batch)",
        remedy,
    )


def _replica_groups(topology: Topology) -> Iterator[Finding]:
    if topology.replica_groups == 1:
        yield Finding(
            "resilience.fault_tolerance",
            "resilience.fault_tolerance: torchft, but parallel.data_replicate: 1 makes one group, without others that "
            "could go on",
            "parallel.data_replicate: 2 or more, or resilience.fault_tolerance: restart",
        )
    elif topology.nnodes > 1:
        yield Finding(
            "resilience.fault_tolerance",
            f"resilience.fault_tolerance: torchft is for groups on one node, and there are {topology.nnodes}",
            "one node, or resilience.fault_tolerance: restart",
        )


def _expert(topology: Topology) -> Iterator[Finding]:
    pool = topology.data_shard * topology.context * topology.tensor
    if pool % topology.expert:
        yield Finding(
            "parallel.expert",
            f"parallel.expert: {topology.expert} does not divide data_shard {topology.data_shard} x context "
            f"{topology.context} x tensor {topology.tensor} = {pool}, whose ranks it shares",
            f"parallel.expert: {either(nearest_divisors(topology.expert, pool))}",
        )
