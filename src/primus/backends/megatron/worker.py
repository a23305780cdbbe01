"""One worker process: patches, device checks, process groups, training."""

from __future__ import annotations

import logging
import sys
import warnings

from primus.backends.base import Result, Session
from primus.backends.pytorch.devices import check_devices
from primus.config.units import seconds
from primus.plan.plan import Plan


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.megatron import patches

    with warnings.catch_warnings():
        # each of Megatron's modules says so when TransformerEngine and Apex, which are optional, are not there
        warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*")
        patches.apply(plan.patches)
    check_devices(plan, session)

    import torch.distributed as dist

    from primus.backends.megatron.platform import Platform
    from primus.backends.megatron.trainer import Trainer

    # Megatron logs to the root logger; the launcher keeps each rank's output
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    platform = Platform.of(plan, session)
    trainer = None
    try:
        platform.connect(plan, seconds(plan.experiment.resilience.hang_timeout))
        trainer = Trainer(plan, session, platform)
        result = trainer.run()
        trainer.checkpoints.shut_down()
    except BaseException:
        if trainer is not None:
            trainer.checkpoints.abandon()
        if platform.kind == "cpu" and dist.is_initialized():
            platform.disconnect()  # on an accelerator this may wait for ranks that are gone
        raise
    platform.disconnect()
    return result
