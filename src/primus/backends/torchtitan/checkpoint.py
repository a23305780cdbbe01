"""The run's checkpoints as TorchTitan's trainer sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.base import BaseCheckpointManager, ModelWrapper

from primus.backends.base import Session
from primus.backends.pytorch.checkpoint import TorchCheckpoints
from primus.backends.torchtitan.optimizer import Optimizers
from primus.plan.plan import Plan


class Checkpoints(TorchCheckpoints, BaseCheckpointManager):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseCheckpointManager.Config):
        _plan: Plan | None = None
        _session: Session | None = None

    def __init__(
        self,
        config: Config,
        *,
        model_parts: list[torch.nn.Module],
        optimizers: Optimizers,
        **_: Any,
    ) -> None:
        assert config._plan is not None
        assert config._session is not None
        super().__init__(config._plan, config._session)
        self.enable = config.enable
        self.save_future = None
        self._model = ModelWrapper(model_parts)
        self._optimizers = optimizers

    def _state(self) -> dict[str, Any]:
        with torch.no_grad():
            return {**self._model.state_dict(), **self._optimizers.state_dict()}

    def _restore(self, state: dict[str, Any], step: int) -> None:
        self._model.load_state_dict(state)
        self._optimizers.load_state_dict(state)
        self._optimizers.set_updates(step)

    def own_state(self) -> dict[str, torch.Tensor]:
        """This rank's part of all that is saved. Of fused parameters, copies."""
        return {name: _local(value) for name, value in self._state().items()}

    @torch.no_grad()
    def put(self, given: dict[str, torch.Tensor], step: int) -> None:
        """Take over the ``own_state`` after `step` steps of another process at this one's place."""
        state = self._state()
        for name, value in state.items():
            _local(value).copy_(given[name])
        self._restore(state, step)

    def _load(self, step: int = -1) -> bool:
        return self.resume() is not None

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        raise NotImplementedError("save_step also takes the consumed samples")

    def _maybe_wait_for_staging(self) -> None:
        self.maybe_wait_for_staging()

    def _wait_for_saving(self) -> None:
        self.finish()

    def _close(self) -> None:
        self.shut_down()


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
