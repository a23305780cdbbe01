"""The learning rate as a pure function of the step, shared by every backend.

With ``t = step + 1``, the number of the optimizer step counted from one, W warm-up steps and D decay steps:

- ``t <= W``: ``lr * t / W``. The first step already learns (with ``step / W`` it would be a step at rate zero, computed
  and thrown away) and step number W is the first at the peak. TorchTitan warms up the same way.
- then, with ``p = (t - W) / (D - W)`` running to 1 at step number D, which is the first at ``min_lr``; it stays there:

  =========  ==========================================================================================
  cosine     ``min_lr + (lr - min_lr) * (1 + cos(pi * p)) / 2``
  linear     ``lr + (min_lr - lr) * p``
  constant   ``lr``
  wsd        ``lr`` for ``stable_steps`` more steps (unset: 90 % of D is warm-up and plateau), then linear
  =========  ==========================================================================================
"""

from __future__ import annotations

import math

from primus.config.experiment import Optimizer
from primus.errors import Problem

PLATEAU = 0.9


def learning_rate(step: int, optimizer: Optimizer, decay_steps: int) -> float:
    """The rate of optimizer step `step` (counted from 0), for any ``step >= 0``.

    decay_steps: the plan's resolved ``optimizer.schedule.decay_steps``.
    """
    schedule = optimizer.schedule
    number, warmup = step + 1, schedule.warmup_steps
    if number <= warmup:
        return optimizer.lr * number / warmup
    if schedule.name == "constant":
        return optimizer.lr
    start = plateau_end(optimizer, decay_steps) if schedule.name == "wsd" else warmup
    if number >= decay_steps:
        return optimizer.min_lr
    progress = max(0.0, (number - start) / (decay_steps - start)) if decay_steps > start else 0.0
    if schedule.name == "cosine":
        return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return optimizer.lr + (optimizer.min_lr - optimizer.lr) * progress


def plateau_end(optimizer: Optimizer, decay_steps: int) -> int:
    """Number of the last step at ``lr`` of a wsd schedule."""
    schedule = optimizer.schedule
    if schedule.stable_steps is not None:
        return schedule.warmup_steps + schedule.stable_steps
    return max(schedule.warmup_steps, int(PLATEAU * decay_steps))


def problems(optimizer: Optimizer, decay_steps: int) -> list[Problem]:
    """What in the schedule contradicts itself, or would be ignored."""
    schedule, found = optimizer.schedule, []
    where = "optimizer.schedule"
    if optimizer.min_lr > optimizer.lr:
        found.append(Problem("optimizer.min_lr", f"min_lr={optimizer.min_lr} exceeds lr={optimizer.lr}"))
    if schedule.stable_steps is not None and schedule.name != "wsd":
        found.append(Problem(f"{where}.stable_steps", f"only wsd has a plateau, not {schedule.name}", "remove it"))
    if schedule.name == "constant":
        if optimizer.min_lr:
            found.append(Problem("optimizer.min_lr", "a constant rate does not fall", "remove it"))
        if schedule.decay_steps is not None:
            found.append(Problem(f"{where}.decay_steps", "a constant rate does not decay", "remove it"))
        return found
    if schedule.warmup_steps >= decay_steps:
        found.append(
            Problem(
                f"{where}.warmup_steps",
                f"{schedule.warmup_steps} warm-up steps leave nothing of the {decay_steps} decay steps",
                "fewer warm-up steps, or a larger decay_steps",
            )
        )
    elif schedule.name == "wsd" and plateau_end(optimizer, decay_steps) >= decay_steps:
        found.append(
            Problem(
                f"{where}.stable_steps",
                f"warm-up and plateau end at step {plateau_end(optimizer, decay_steps)}, with decay_steps={decay_steps}",
                "fewer stable steps, or a larger decay_steps",
            )
        )
    return found
