"""AdamW by the numerics contract in Megatron's optimizers, and their state as pieces of whole tensors.

Megatron's optimizer holds weights and moments in fp32: of whole parameters, or with the distributed optimizer of the
flat ranges that this data-parallel rank updates. Both are pieces of the model's whole tensors, which is how they are
started, saved and restored, whatever the layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from primus.backends.megatron import compat
from primus.backends.megatron.shards import shards
from primus.backends.pytorch.norms import squared_norm
from primus.backends.pytorch.pieces import Piece, Pieces, cut
from primus.backends.pytorch.shards import Shard
from primus.plan.plan import Plan

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Held:
    """What this rank updates of a parameter: fp32 weights, flat from element `start` of the shard, and their state."""

    shard: Shard
    main: torch.Tensor
    start: int
    state: dict[str, torch.Tensor]

    def pieces(self, values: torch.Tensor) -> list[Piece]:
        return cut(values.detach().view(-1), self.start, self.shard.indices)


class Optimizer:
    """Megatron's optimizer over the wrapped model chunks."""

    def __init__(self, plan: Plan, chunks: list[Any]) -> None:
        settings = plan.experiment.optimizer
        self._chunks, self._settings = chunks, settings
        fp32 = plan.experiment.precision == "fp32"
        config = OptimizerConfig(
            **plan.native["optimizer"],
            bf16=not fp32,
            params_dtype=torch.float32 if fp32 else torch.bfloat16,
        )
        self._distributed = config.use_distributed_optimizer
        self._engine = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
        self._parts = getattr(self._engine, "chained_optimizers", [self._engine])
        """One for parameters that all data-parallel ranks hold, one for experts."""
        self._device = next(chunks[0].parameters()).device
        self._held = list(self._find())
        self._buffers = [shard for shard, tensor in shards(chunks) if not isinstance(tensor, torch.nn.Parameter)]
        self._before: list[torch.Tensor] = []

    def _find(self) -> Iterator[Held]:
        """Creates the moments too, which torch's AdamW would make at its first step."""
        owner = {id(parameter): part for part in self._parts for parameter in _parameters(part)}
        for part in self._parts:
            if isinstance(part.optimizer, torch.optim.AdamW):
                for group in part.optimizer.param_groups:
                    group |= {"fused": True, "foreach": False}  # several times faster, on a CPU too
        for shard, parameter in shards(self._chunks):
            part = owner.get(id(parameter))
            if part is None:
                continue
            main, start = parameter, 0
            if isinstance(part, DistributedOptimizer):
                if parameter not in part.model_param_group_index_map:
                    continue  # other ranks update all of it
                group, place = part.model_param_group_index_map[parameter]
                main = part.optimizer.param_groups[group]["params"][place]
                start = part._get_model_param_range_map(parameter)["param"].start
            else:
                main = getattr(parameter, "main_param", parameter)
            state = part.optimizer.state[main]
            for name in MOMENTS:
                state[name] = torch.zeros_like(main, dtype=torch.float32)
            if isinstance(part.optimizer, torch.optim.AdamW):
                state["step"] = torch.zeros((), dtype=torch.float32, device=main.device)
            yield Held(shard, main, start, state)

    # a step

    def zero_grad(self) -> None:
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._engine.zero_grad()

    def remember_buffers(self) -> None:
        self._before = [shard.local.clone() for shard in self._buffers]

    def restore_buffers(self) -> None:
        """As they were when they were remembered."""
        for shard, values in zip(self._buffers, self._before, strict=True):
            shard.local.copy_(values)

    def gradient_norm(self) -> float:
        """Of the whole model; gradients must have been reduced."""
        self._engine.prepare_grads()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part in self._parts:
            # of parameters that several ranks hold whole, one of them gives the gradient
            mine = squared_norm(compat.gradients_for_norm(part), self._device)
            dist.all_reduce(mine, group=part.get_grad_stats_parallel_group())
            total += mine
        return math.sqrt(total.item())

    def step(self, lr: float, norm: float) -> None:
        """Update with gradients of the global norm `norm`, scaled down to the experiment's limit."""
        limit = self._settings.clip_grad_norm or math.inf
        if norm > limit:
            gradients = [held.main.grad for held in self._held if held.main.grad is not None]
            # the small number in the divisor is torch's and every engine's
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        for group in self._engine.param_groups:
            group["lr"] = lr * group["lr_mult"]
            group["weight_decay"] = self._settings.weight_decay * group["wd_mult"]
        self._engine.step_with_ready_grads()

    # state

    def weights(self) -> list[Shard]:
        """The fp32 weights and the buffers of this rank, each piece a shard, to be filled at the start."""
        found = [_as_shard(held.shard, piece) for held in self._held for piece in held.pieces(held.main)]
        return found + self._buffers

    def state(self) -> dict[str, torch.Tensor]:
        """``NAME``, ``optimizer.NAME.exp_avg`` and ``optimizer.NAME.exp_avg_sq`` of everything this rank updates."""
        found: dict[str, list[Piece]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for held in self._held:
            name = held.shard.name
            named = [(name, held.main), *((f"optimizer.{name}.{moment}", held.state[moment]) for moment in MOMENTS)]
            for key, values in named:
                found.setdefault(key, []).extend(held.pieces(values))
                shapes[key] = held.shard.shape
        for shard in self._buffers:
            found[shard.name], shapes[shard.name] = cut(shard.local.view(-1), 0, shard.indices), shard.shape
        return {name: Pieces(shapes[name], pieces) for name, pieces in found.items()}

    def publish(self) -> None:
        """Bring the fp32 weights into the model, on every rank that holds a copy."""
        with torch.no_grad():
            for part in self._parts:
                copy = getattr(part, "_copy_main_params_to_model_params", None)
                if copy is not None:
                    copy()
        if self._distributed:
            for chunk in self._chunks:
                chunk.start_param_sync(force_sync=True)

    def set_updates(self, updates: int) -> None:
        """Tell the optimizer how many updates it has made: the bias correction depends on it."""
        for held in self._held:
            if "step" in held.state:
                held.state["step"].fill_(float(updates))
        for group in self._engine.param_groups:
            if "step" in group:
                group["step"] = updates


def _parameters(part: Any) -> list[torch.nn.Parameter]:
    """Model parameters of one of Megatron's optimizers."""
    if isinstance(part, DistributedOptimizer):
        groups = [*part.model_float16_groups, *part.model_fp32_groups]
    elif hasattr(part, "float16_groups"):
        groups = [*part.float16_groups, *part.fp32_from_fp32_groups]
    else:
        groups = [group["params"] for group in part.optimizer.param_groups]
    return [parameter for group in groups for parameter in group]


def _as_shard(whole: Shard, piece: Piece) -> Shard:
    indices = [
        np.arange(offset, offset + size, dtype=np.int64)
        for offset, size in zip(piece.offsets, piece.tensor.shape, strict=True)
    ]
    return Shard(whole.name, piece.tensor, whole.shape, indices)
