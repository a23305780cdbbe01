"""One worker process: a node's devices, the other processes, training."""

from __future__ import annotations

import os

from primus.backends.base import Result, Session
from primus.plan.plan import Plan

THREADS = 16
"""That XLA has for a device of a CPU. A collective blocks one until every device is in it, and a device may be in
several at once, each device in others: with one thread a device, as XLA starts, all can wait for each other."""

IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
"""For XLA on a CPU: devices come to their collectives in one order, so that none waits in one for a device that waits
in another for it."""


def run(plan: Plan, session: Session) -> Result:
    """Train this process's part of `plan`."""
    import jax

    on_cpu, devices = plan.experiment.hardware.device == "cpu", plan.topology.nproc_per_node
    if on_cpu and plan.topology.world_size > 1:
        os.environ["NPROC"] = str(max(THREADS * devices, os.cpu_count() or 1))
        os.environ["XLA_FLAGS"] = f"{IN_ORDER} {os.environ.get('XLA_FLAGS', '')}"  # of one said twice, the later counts
    if on_cpu and jax.config.jax_num_cpu_devices != devices:  # it must not change while JAX has devices
        jax.config.update("jax_num_cpu_devices", devices)
    if session.world_size > 1:
        if on_cpu:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        jax.distributed.initialize(meeting, session.world_size, session.rank)

    from primus.backends.loop import Loop
    from primus.backends.maxtext import patches
    from primus.backends.maxtext.devices import check_devices

    check_devices(plan, session)
    patches.apply(plan.patches)

    from primus.backends.maxtext.trainer import Trainer

    return Loop(plan, session, Trainer(plan, session)).run()
