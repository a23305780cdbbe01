"""The plain loop that every engine is compared with: torch and transformers, nothing of an engine.

It shares with Primus only what the numerics contract publishes: the sample order, the random start and the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from primus.data.reader import open_training
from primus.numerics.init import normal
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


@dataclass(frozen=True)
class Trained:
    losses: dict[int, float]
    norms: dict[int, float]


def train(plan: Plan) -> Trained:
    """Losses and gradient norms of the plan's steps, counted from 1."""
    experiment = plan.experiment
    settings, schedule = experiment.train, experiment.optimizer
    model = random_model(plan)
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
    for step in range(settings.steps):
        batch = reader.read(step * settings.global_batch_size, settings.global_batch_size)
        inputs, labels = (torch.from_numpy(np.ascontiguousarray(array)) for array in (batch.inputs, batch.labels))
        logits = model(input_ids=inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        clip = schedule.clip_grad_norm or float("inf")
        norms[step + 1] = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule, plan.decay_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses[step + 1] = loss.item()
    return Trained(losses, norms)


def random_model(plan: Plan) -> torch.nn.Module:
    """The transformers model of the plan, in fp32, with the contract's random start."""
    fields = plan.experiment.model
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config(plan), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            drawn = normal(plan.experiment.train.seed, name, 0, parameter.numel()) * np.float32(fields.init_std)
            parameter.copy_(torch.from_numpy(drawn).view_as(parameter))
    return model.train()


def config(plan: Plan) -> PretrainedConfig:
    model = plan.experiment.model
    kinds = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    names += ["intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"]
    values = {name: getattr(model, name) for name in names}
    if model.head_dim:
        values["head_dim"] = model.head_dim
    # no token is special here: an id of padding would freeze its embedding
    return kinds[model.model_type](
        **values,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        pad_token_id=None,
        dtype="float32",
    )
