"""One worker process: patches, then training with TorchTitan's parts."""

from __future__ import annotations

from primus.backends.base import Result, Session
from primus.plan.plan import Plan


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.torchtitan import patches

    patches.apply(plan.patches)

    import torch.distributed as dist

    from primus.backends.pytorch.worker import train
    from primus.backends.torchtitan.configure import trainer_config

    return train(plan, session, trainer_config(plan, session).build, dist.destroy_process_group)
