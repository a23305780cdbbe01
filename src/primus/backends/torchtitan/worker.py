"""One worker process: patches, device checks, process group, training."""

from __future__ import annotations

import logging
import sys

from primus.backends.base import Result, Session
from primus.backends.pytorch.devices import check_devices
from primus.plan.plan import Plan


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.torchtitan import patches

    patches.apply(plan.patches)
    check_devices(plan, session)

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
