"""What balances the load of experts, for the plain loop: ``moe.balance`` as docs/numerics.md defines it."""

from __future__ import annotations

from typing import Any

import torch

from primus.config.routing import normalized
from primus.plan.plan import Plan

RATE = 1e-3


class Balance:
    """Watches the routers of a transformers model. An auxiliary loss is that of each sequence."""

    def __init__(self, plan: Plan, model: torch.nn.Module) -> None:
        self._moe, self._fields = plan.experiment.moe, plan.experiment.model
        self._length = plan.experiment.train.seq_length
        self._seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        for module in model.modules():
            if type(module).__name__.lower().endswith("router"):
                module.register_forward_hook(self._look)

    def _look(self, router: torch.nn.Module, _: Any, output: Any) -> Any:
        logits, weights, chosen = output
        if self._moe.balance == "bias" and self._fields.model_type != "deepseek_v3":  # transformers has no bias there
            if not hasattr(router, "e_score_correction_bias"):
                router.e_score_correction_bias = torch.zeros(logits.shape[-1])
            scores = logits.softmax(-1)
            chosen = (scores + router.e_score_correction_bias).topk(chosen.shape[-1], dim=-1).indices
            weights = scores.gather(-1, chosen)
            weights = weights / weights.sum(-1, keepdim=True) if normalized(self._fields) else weights
        self._seen[router] = (logits, chosen)
        return logits, weights, chosen

    def loss(self) -> torch.Tensor | float:
        """What is added to the loss of the last batch."""
        if self._moe.balance != "aux_loss":
            return 0.0
        return (self._moe.aux_loss_coeff or 0.0) * sum(self._layer(logits) for logits, _ in self._seen.values())

    def _layer(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.sigmoid() if self._fields.scoring_func == "sigmoid" else logits.softmax(-1)
        scores = (scores / scores.sum(-1, keepdim=True)).unflatten(0, (-1, self._length))
        count = self._fields.num_experts_per_tok or 1
        uses = torch.zeros_like(scores).scatter(-1, scores.topk(count, dim=-1).indices, 1.0)
        share, probability = uses.mean(1) / count, scores.mean(1)
        return (share * probability).sum(-1).mean() * scores.shape[-1]

    def step(self) -> None:
        """After an update: move the biases."""
        for router, (logits, chosen) in self._seen.items():
            if self._moe.balance == "bias":
                count = torch.bincount(chosen.flatten(), minlength=logits.shape[-1]).float()
                with torch.no_grad():
                    router.e_score_correction_bias += RATE * (count.mean() - count).sign()
