"""The devices that JAX holds in this process: whether they are the planned ones."""

from __future__ import annotations

import os

import jax

from primus.backends.base import Session
from primus.errors import EnvironmentFault
from primus.events.types import Notice
from primus.plan.plan import Plan

LOOK = "`primus-cli env check jax --devices` shows which plugins and devices JAX has"


def check_devices(plan: Plan, session: Session) -> None:
    """Raise EnvironmentFault unless JAX has the planned devices of this node; says so when they have another name."""
    hardware, node = plan.experiment.hardware, os.uname().nodename
    remedy = "extend the hardware preset of this machine, or choose another node"
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        raise EnvironmentFault(
            f"the plan is for {hardware.name}, but JAX cannot start {hardware.device}: {error}",
            where=node,
            remedy=f"{LOOK}; {remedy}",
        ) from error
    kind = _kind(found[0])
    if kind != hardware.device:
        message = f"the plan is for {hardware.name} ({hardware.device}), but JAX runs on {kind} here"
        raise EnvironmentFault(message, where=node, remedy=f"{LOOK}; {remedy}")
    needed = plan.topology.nproc_per_node
    if len(found) != needed:
        raise EnvironmentFault(
            f"the plan needs {needed} devices on a node, JAX sees {len(found)}", where=node, remedy=remedy
        )
    name = found[0].device_kind
    if hardware.device != "cpu" and hardware.name.lower() not in name.lower():
        session.emit(
            Notice(message=f"the plan is for {hardware.name}; {node} has {name}, so memory and MFU figures may mislead")
        )


def _kind(device: jax.Device) -> str:
    """cpu, cuda or rocm; JAX calls the last two gpu."""
    if device.platform != "gpu":
        return str(device.platform)
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
