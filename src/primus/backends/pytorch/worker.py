"""One worker process of a PyTorch engine: devices, process groups, training, and leaving them in order."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from primus.backends.base import Result, Session
from primus.backends.loop import Loop
from primus.backends.pytorch.devices import check_devices
from primus.backends.pytorch.steps import Steps, TorchEngine
from primus.plan.plan import Plan


def plain_loop(plan: Plan, session: Session, engine: TorchEngine) -> Loop:
    return Loop(plan, session, Steps(plan, session, engine))


def train(
    plan: Plan,
    session: Session,
    build: Callable[[], TorchEngine],
    disconnect: Callable[[], None],
    loop: Callable[[Plan, Session, Any], Loop] = plain_loop,
) -> Result:
    """Train this rank's part of `plan`. build: joins the process groups and makes the engine; disconnect: leaves the
    groups; loop: makes the loop of what `build` made. Raises EnvironmentFault when a device is not as planned."""
    check_devices(plan, session)
    # engines log to the root logger; the launcher keeps each rank's output
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        result = loop(plan, session, build()).run()
    except BaseException:
        if plan.experiment.hardware.device == "cpu" and dist.is_initialized():
            disconnect()  # on an accelerator this may wait for ranks that are gone
        raise
    disconnect()
    return result
