"""The learning rate as a pure function of the step, shared by every backend.

With ``t = step + 1``, the number of the optimizer step counted from one, W warm-up steps and D decay steps:

- ``t <= W``: ``lr * t / W``. The first step already learns (with ``step / W`` it would be a step at rate zero, computed
  and thrown away) and step number W is the first at the peak. TorchTitan warms up the same way.
- then, with ``p = (t - W) / (D - W)`` running to 1 at step number D, which is the first at ``min_lr``; it stays there:

  =========  ==========================================================================================
  cosine     ``min_lr + (lr - min_lr) * (1 + cos(pi * p)) / 2``
  linear     ``lr + (min_lr - lr) * p``
  constant   ``lr``
  wsd        ``lr`` for ``stable_steps`` more steps, which move the start of p, then linear
  =========  ==========================================================================================
"""

from __future__ import annotations

import math

from primus.config.experiment import Optimizer


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
    start = warmup + (schedule.stable_steps or 0 if schedule.name == "wsd" else 0)
    if number >= decay_steps:
        return optimizer.min_lr
    progress = max(0.0, (number - start) / (decay_steps - start)) if decay_steps > start else 0.0
    if schedule.name == "cosine":
        return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return optimizer.lr + (optimizer.min_lr - optimizer.lr) * progress
