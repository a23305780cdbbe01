"""One worker process: patches, then training with Megatron's parts."""

from __future__ import annotations

import warnings

from primus.backends.base import Result, Session
from primus.config.units import first_collective_seconds
from primus.plan.plan import Plan


def run(plan: Plan, session: Session) -> Result:
    """Train this rank's part of `plan`. Raises EnvironmentFault when a patch or a device is not as planned."""
    from primus.backends.megatron import patches

    with warnings.catch_warnings():
        # each of Megatron's modules says so when TransformerEngine and Apex, which are optional, are not there
        warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*")
        patches.apply(plan.patches)

    from primus.backends.megatron.platform import Platform, disconnect
    from primus.backends.megatron.trainer import Trainer
    from primus.backends.pytorch.worker import train

    def build() -> Trainer:
        platform = Platform.of(plan, session)
        resilience = plan.experiment.resilience
        platform.connect(plan, first_collective_seconds(resilience.start_timeout, resilience.hang_timeout))
        return Trainer(plan, session, platform)

    return train(plan, session, build, disconnect)
