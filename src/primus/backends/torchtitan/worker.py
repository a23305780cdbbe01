"""One worker process: patches, device checks, process group, training."""

from __future__ import annotations

import logging
import os
import sys

from primus.backends.base import Result, Session
from primus.errors import EnvironmentFault
from primus.events.types import Notice
from primus.plan.plan import Plan


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.torchtitan import patches

    patches.apply(plan.patches)
    _check_devices(plan, session)

    import torch.distributed as dist

    from primus.backends.torchtitan.configure import trainer_config

    # TorchTitan logs to the root logger; the launcher keeps each rank's output
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    trainer = None
    try:
        trainer = trainer_config(plan, session).build()
        result: Result = trainer.train_run()
        trainer.close()
    except BaseException:
        if trainer is not None:
            trainer.checkpointer.abandon()
        if plan.experiment.hardware.device == "cpu" and dist.is_initialized():
            dist.destroy_process_group()  # on an accelerator this may wait for ranks that are gone
        raise
    dist.destroy_process_group()
    return result


def _check_devices(plan: Plan, session: Session) -> None:
    """The device the plan is for must be there, once for each process of this node."""
    import torch

    hardware, node = plan.experiment.hardware, os.uname().nodename
    if hardware.device == "cpu":
        return
    remedy = "extend the hardware preset of this machine, or choose another node"
    if not torch.cuda.is_available():
        raise EnvironmentFault(
            f"the plan is for {hardware.name}, but torch sees no accelerator", where=node, remedy=remedy
        )
    kind = "rocm" if torch.version.hip is not None else "cuda"
    if kind != hardware.device:
        raise EnvironmentFault(
            f"the plan is for {hardware.device}, but this torch is built for {kind}", where=node, remedy=remedy
        )
    count, needed = torch.cuda.device_count(), plan.topology.nproc_per_node
    if count < needed and count != 1:  # a launcher may show each process its own device only
        raise EnvironmentFault(
            f"the plan needs {needed} devices on a node, torch sees {count}", where=node, remedy=remedy
        )
    name = torch.cuda.get_device_name(session.local_rank if count > 1 else 0)
    if session.local_rank == 0 and hardware.name.lower() not in name.lower():
        session.emit(
            Notice(message=f"the plan is for {hardware.name}; {node} has {name}, so memory and MFU figures may mislead")
        )
