"""The run's checkpoints: weights, moments and buffers as pieces of whole tensors."""

from __future__ import annotations

from typing import Any

from primus.backends.base import Session
from primus.backends.megatron.optimizer import Optimizer
from primus.backends.pytorch.checkpoint import TorchCheckpoints
from primus.plan.plan import Plan


class Checkpoints(TorchCheckpoints):
    def __init__(self, plan: Plan, session: Session, optimizer: Optimizer) -> None:
        super().__init__(plan, session)
        self._optimizer = optimizer

    def _state(self) -> dict[str, Any]:
        return dict(self._optimizer.state())

    def _restore(self, state: dict[str, Any], step: int) -> None:
        """The pieces are views of what the optimizer holds, so they are in place already."""
        self._optimizer.set_updates(step)
        self._optimizer.publish()
