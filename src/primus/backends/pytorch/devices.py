"""The devices of this node: whether they are the planned ones."""

from __future__ import annotations

import os

from primus.backends.base import Session
from primus.errors import EnvironmentFault
from primus.events.types import Notice
from primus.plan.plan import Plan


def check_devices(plan: Plan, session: Session) -> None:
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
    count, needed = torch.cuda.device_count(), min(plan.topology.nproc_per_node, plan.topology.group_size)
    if count < needed and count != 1:  # a launcher may show each process its own device only
        raise EnvironmentFault(f"the plan needs {needed} devices here, torch sees {count}", where=node, remedy=remedy)
    name = torch.cuda.get_device_name(session.local_rank if count > 1 else 0)
    if session.local_rank == 0 and hardware.name.lower() not in name.lower():
        session.emit(
            Notice(message=f"the plan is for {hardware.name}; {node} has {name}, so memory and MFU figures may mislead")
        )
