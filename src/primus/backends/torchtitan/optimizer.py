"""AdamW by the numerics contract, in TorchTitan's optimizer container."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.components.optimizer.utils import init_optim_state

from primus.config.experiment import Optimizer as Settings

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizers(OptimizersContainer[torch.optim.AdamW]):
    """One AdamW a model part, with two groups: parameters of two or more dimensions decay, embeddings included;
    norms, biases and other vectors do not.

    Its state dict holds the two moments of every parameter and nothing else: hyperparameters come from the plan, and
    every parameter has made as many updates as the run has steps, which ``set_updates`` restores.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    @staticmethod
    def _build_param_groups(
        model: nn.Module, param_group_configs: list[ParamGroupConfig], impl_kwargs: dict[str, Any]
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
        """Groups by dimension rather than by name: a pipeline stage may well own no vector at all."""
        (common,) = param_group_configs
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        patterns: dict[str, list[str]] = defaultdict(list)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        for decays in (True, False):
            members = [(name, parameter) for name, parameter in named if (parameter.ndim >= 2) == decays]
            if not members:
                continue
            group: dict[str, Any] = {
                "params": [parameter for _, parameter in members],
                "param_names": [canonical_fqn(name) for name, _ in members],
                **impl_kwargs,
                **common.optimizer_kwargs,
            }
            if not decays:
                group["weight_decay"] = 0.0
            groups[common.optimizer_name].append(group)
            patterns[common.optimizer_name].append("two or more dimensions" if decays else "vectors")
        return groups, patterns

    def state_dict(self) -> dict[str, Any]:
        """``optimizer.NAME.exp_avg`` and ``optimizer.NAME.exp_avg_sq`` of every parameter, as live tensors."""
        return {f"optimizer.{name}.{moment}": state[moment] for name, state in self._states() for moment in MOMENTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in self._states():
            for moment in MOMENTS:
                value = state_dict[f"optimizer.{name}.{moment}"]
                if value is not state[moment]:
                    state[moment].copy_(value)

    def set_updates(self, updates: int) -> None:
        """Tell every parameter how many updates it has had: the bias correction depends on it."""
        for _, state in self._states():
            state["step"].fill_(float(updates))

    def set_lr(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        states = []
        for optimizer in self.optimizers:
            init_optim_state(optimizer)
            for group in optimizer.param_groups:
                states += [
                    (name, optimizer.state[parameter])
                    for name, parameter in zip(group["param_names"], group["params"], strict=True)
                ]
        return states


def adamw(settings: Settings, implementation: str) -> Optimizers.Config:
    """The containers' configuration for the experiment's `settings`."""
    options = {
        "lr": settings.lr,
        "betas": tuple(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    group = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs=options)
    return Optimizers.Config(param_groups=[group], implementation=implementation)


class NoSchedule(LRSchedulersContainer):
    """TorchTitan's trainer wants schedulers; the loop sets the learning rate of every step."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        def build(self, *, optimizers: OptimizersContainer[Any], training_steps: int) -> NoSchedule:
            return NoSchedule()

    def __init__(self) -> None:
        self.schedulers: list[Any] = []

    def step(self) -> None:
        pass

    def get_metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
