"""What every training loop says at its start, and when a step may not be made."""

from __future__ import annotations

import math

from primus.backends.base import Session
from primus.backends.pytorch.checkpoint import RunCheckpoints
from primus.backends.pytorch.meter import Readings
from primus.errors import TrainingError
from primus.events.types import RunStarted
from primus.plan.plan import Plan


def announce(plan: Plan, session: Session, engine: str, resumed_from: int | None) -> None:
    """Emit the start of the run on rank 0. engine: as people spell it."""
    if session.rank != 0:
        return
    patches = f"{len(plan.patches)} declared patches of {engine} apply; plan.json lists them"
    session.emit(
        RunStarted(
            name=plan.experiment.name,
            attempt=session.attempt,
            world_size=session.world_size,
            device=plan.experiment.hardware.name,
            parameters=plan.parameters,
            steps=plan.experiment.train.steps,
            resumed_from=resumed_from,
            notes=(patches,) if plan.patches else (),
        )
    )


def refuse_unfinite(readings: Readings, step: int, checkpoints: RunCheckpoints) -> None:
    """Raise TrainingError when loss or gradient norm of `step` is not finite: before the update, so that the
    checkpoints on the disk are from finite steps."""
    ranks = readings.unfinite_ranks
    if not ranks and math.isfinite(readings.grad_norm):
        return
    checkpoints.finish()
    what = f"the loss is {readings.loss}"
    what += "" if ranks else f", but the gradient norm is {readings.grad_norm}"
    which = f" on rank {', '.join(map(str, ranks))}" if ranks else " (one norm for all ranks)"
    kept = checkpoints.complete_step
    raise TrainingError(
        f"{what}{which}; no weight was updated with it",
        where=f"step {step}",
        remedy="lower optimizer.lr or optimizer.clip_grad_norm, or look at the data of this step; "
        + (f"the checkpoint of step {kept} is intact" if kept is not None else "there is no checkpoint yet"),
    )
