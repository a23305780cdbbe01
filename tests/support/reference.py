"""The plain loop that every engine is compared with: torch and transformers, nothing of an engine.

It shares with Primus only what the numerics contract publishes: the sample order, the random start and the schedule.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from balance import Balance
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from primus.config.experiment import Model
from primus.config.huggingface import to_config
from primus.data.reader import open_training
from primus.numerics.init import normal
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


@dataclass(frozen=True)
class Trained:
    """gap: smallest distance, over all tokens and steps, of the scores of the last expert chosen and the first one not;
    infinite without experts."""

    losses: dict[int, float]
    norms: dict[int, float]
    gap: float


def train(
    plan: Plan,
    dtype: torch.dtype = torch.float32,
    *,
    model: torch.nn.Module | None = None,
    balanced: bool = False,
    left_out: Collection[int] = (),
) -> Trained:
    """Losses and gradient norms of the plan's steps, counted from 1.

    model: what is trained, if not a random start. balanced: experts are, as ``moe.balance`` says. left_out: global
    batches that no step is made of, counted from 0.
    """
    experiment = plan.experiment
    settings, schedule = experiment.train, experiment.optimizer
    model = random_model(plan, dtype) if model is None else model
    gaps = watch_routers(model, experiment.model)
    balance = Balance(plan, model) if balanced else None
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": schedule.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=schedule.betas,
        eps=schedule.eps,
        foreach=False,
        fused=False,
    )
    reader = open_training(plan)
    losses, norms = {}, {}
    batches = (number for number in itertools.count() if number not in left_out)
    for step, number in zip(range(settings.steps), batches, strict=False):
        batch = reader.read(number * settings.global_batch_size, settings.global_batch_size)
        inputs, labels = (torch.from_numpy(np.ascontiguousarray(array)) for array in (batch.inputs, batch.labels))
        logits = model(input_ids=inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        (loss + balance.loss() if balance else loss).backward()
        clip = schedule.clip_grad_norm or float("inf")
        norms[step + 1] = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule, plan.decay_steps)
        optimizer.step()
        optimizer.zero_grad()
        if balance:
            balance.step()
        losses[step + 1] = loss.item()
    return Trained(losses, norms, min(gaps, default=math.inf))


def watch_routers(model: torch.nn.Module, fields: Model) -> list[float]:
    """A list to which every router adds its smallest gap whenever it is used. Routing in groups is not looked into."""
    gaps: list[float] = []

    def look(_: torch.nn.Module, __: Any, output: Any) -> None:
        logits = (output[0] if isinstance(output, tuple) else output).detach().flatten(0, -2)
        scores = logits.sigmoid() if fields.scoring_func == "sigmoid" else logits.softmax(-1)
        chosen = fields.num_experts_per_tok or 0
        best = scores.topk(chosen + 1, dim=-1).values
        gaps.append((best[:, -2] - best[:, -1]).min().item())

    for module in model.modules():
        if type(module).__name__.lower().endswith("router"):
            module.register_forward_hook(look)
    return gaps


def random_model(plan: Plan, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The transformers model of the plan with the contract's random start, by the names that transformers writes."""
    experiment = plan.experiment
    fields = AutoConfig.for_model(**to_config(experiment.model))
    fields.pad_token_id = None  # no token is special here: an id of padding would freeze its embedding
    with tempfile.TemporaryDirectory() as directory:
        AutoModelForCausalLM.from_config(fields).save_pretrained(directory)
        path = Path(directory) / "model.safetensors"
        start = {name: _start(plan, name, tensor) for name, tensor in load_file(path).items()}
        save_file(start, path, metadata={"format": "pt"})
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        )
    return model.train()


def _start(plan: Plan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or name.endswith("_bias"):
        return torch.ones_like(tensor) if name.endswith("norm.weight") else torch.zeros_like(tensor)
    drawn = normal(plan.experiment.train.seed, name, 0, tensor.numel()) * np.float32(plan.experiment.model.init_std)
    return torch.from_numpy(drawn).view_as(tensor)
