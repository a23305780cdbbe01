"""Steps that must not count, and what ``resilience.anomaly`` does about them, whatever engine makes them.

An anomaly is a loss or gradient norm that is NaN or infinite, or a spike: a loss far above those of the steps before.
Its global batch is left out: the step is made of the next one instead, so that step numbers count updates.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from primus.checkpoints.skipped import Skipped, passed_over
from primus.plan.plan import Plan

if TYPE_CHECKING:
    from primus.backends.loop import Readings


class Anomalies:
    """skipped: what earlier starts of the run left out."""

    def __init__(self, plan: Plan, attempt: int, skipped: list[Skipped]) -> None:
        self._settings, self._attempt, self._batch = plan.experiment.resilience, attempt, plan.experiment.train
        self.skipped = skipped
        self._losses: deque[tuple[int, float]] = deque(maxlen=self._settings.spike_window)

    def found(self, readings: Readings) -> str:
        """What is wrong with a step; empty when nothing is."""
        ranks, loss, norm = readings.unfinite_ranks, readings.loss, readings.grad_norm
        if not ranks and math.isfinite(loss) and math.isfinite(norm):
            return self._spike(loss)
        what = f"the loss is {loss:.6g}"
        what += f", but the gradient norm is {norm:.6g}" if math.isfinite(loss) else ""
        return what + (f" on rank {', '.join(map(str, ranks))}" if ranks else " (one figure for all ranks)")

    def _spike(self, loss: float) -> str:
        factor, losses = self._settings.spike_factor, self._losses
        if factor is None or len(losses) < self._settings.spike_window:
            return ""
        usual = median(value for _, value in losses)
        if loss <= factor * usual:
            return ""
        return (
            f"the loss is {loss:.6g}, more than {factor:g} (resilience.spike_factor) times {usual:.6g}, "
            f"the median of the last {len(losses)} steps"
        )

    def learnt(self, step: int, loss: float) -> None:
        """A step counts: the next ones are compared with it, too."""
        self._losses.append((step, loss))

    def returned(self, step: int) -> None:
        """Training is back at `step`: what came after it is compared with no more."""
        while self._losses and self._losses[-1][0] > step:
            self._losses.pop()

    def pass_over(self, consumed: int) -> int:
        """How many samples after `consumed` are left out before the next batch."""
        return passed_over(consumed, self._batch.global_batch_size, self.skipped)

    def exhausted(self, step: int, kept: int | None) -> str:
        """Why the policy goes no further at `step`, with `kept` the newest complete checkpoint; empty when it does."""
        policy, limit = self._settings.anomaly, self._settings.anomaly_limit
        if policy == "stop":
            return ""
        if policy == "skip_step":
            before, where = [entry for entry in self.skipped if entry.step == step], "at this step"
        else:
            before = [entry for entry in self.skipped if entry.policy == "rollback" and entry.returned_to == kept]
            where = "since the start" if kept is None else f"since the checkpoint of step {kept}"
        if len(before) < limit:
            return ""
        return f"{len(before)} batches were left out {where} already (resilience.anomaly_limit)"

    def leave_out(self, step: int, consumed: int, reason: str, returned_to: int | None) -> Skipped:
        """Leave out the batch after `consumed` samples, of which `step` was to be made."""
        policy = self._settings.anomaly
        assert policy != "stop"
        batch = self._batch.global_batch_size
        entry = Skipped(consumed, batch, step, policy, reason, self._attempt, returned_to)
        self.skipped.append(entry)
        return entry


def samples(first: int, count: int) -> str:
    """For a person: samples are counted from 0."""
    return f"samples {first:,} to {first + count - 1:,}"
