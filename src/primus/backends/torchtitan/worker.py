"""One worker process: patches, then training with TorchTitan's parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from primus.backends.base import Result, Session
from primus.plan.plan import Plan

if TYPE_CHECKING:
    from primus.backends.loop import Loop


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.torchtitan import patches

    patches.apply(plan.patches)

    import torch.distributed as dist

    from primus.backends.pytorch.worker import plain_loop, train
    from primus.backends.torchtitan.configure import trainer_config

    loop: Callable[[Plan, Session, Any], Loop] = plain_loop
    if plan.topology.replica_groups > 1:
        from primus.backends.torchtitan.replica_loop import replica_loop

        loop = replica_loop
    return train(plan, session, trainer_config(plan, session).build, dist.destroy_process_group, loop)
