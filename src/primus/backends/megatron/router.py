"""The choice of experts, as each family defines it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import compute_routing_scores_for_aux_loss
from megatron.core.transformer.moe.router import TopKRouter

from primus.config.experiment import Model
from primus.config.routing import normalized, scoring

# Shapes: T tokens of this rank, E experts, K experts a token is routed to.


class Router(TopKRouter):  # type: ignore[misc]
    """Megatron's router with the choice of the model's family in it. Nothing is ever dropped.

    Its auxiliary losses weigh as ``docs/numerics.md`` says: each is a mean over all tokens of the global batch, to
    which a microbatch adds by its number of tokens. Megatron divides them by the targets of the loss instead, of which
    there are fewer where some are masked, and 0.16.1 once more by the ranks that share a microbatch.
    """

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [S, B, E] -> weights [T, E], zero where a token is not routed to, and bool [T, E] where it is."""
        length, batch = logits.shape[:2]
        logits = self.apply_z_loss(logits.view(-1, self.config.num_moe_experts))
        chosen, weights = choose(logits, self.config.model, self.expert_bias)
        routed = torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)
        probabilities = torch.zeros_like(logits).scatter(1, chosen, weights.type_as(logits))
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            uses, scores = compute_routing_scores_for_aux_loss(logits, self.topk, self.score_function)
            probabilities = self._apply_aux_loss(probabilities, scores, uses)
            probabilities = self._apply_seq_aux_loss(probabilities, scores, uses, length, batch)
            probabilities = self._apply_global_aux_loss(probabilities, scores, uses)
        self._apply_expert_bias(routed)
        return probabilities, routed

    def attach_and_log_load_balancing_loss(
        self,
        activation: torch.Tensor,
        aux_loss_coeff: float,
        aux_loss: torch.Tensor,
        aux_loss_name: str,
        reduce_group: Any,
        **_: Any,
    ) -> torch.Tensor:
        """activation [T, E]. aux_loss: this rank's summand of the loss of the tokens of `reduce_group`, scaled by its
        coefficient already. It is not logged: the reported loss is that of the next token."""
        tokens = len(activation) * reduce_group.size()
        return attach(activation, aux_loss * (tokens / self.config.tokens_per_step))

    def apply_z_loss(self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """logits [T, E] with the z-loss attached: the squared logarithm of the softmax's denominator (arXiv:2202.08906,
        equation 5)."""
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not self.training or not torch.is_grad_enabled():
            return logits
        loss = logits.logsumexp(-1).square().sum()
        return attach(logits, loss * (coefficient / self.config.tokens_per_step))


class _Attached(torch.autograd.Function):
    """As Megatron's, but without its scale, which is one over the targets of the step."""

    @staticmethod
    def forward(context: Any, activation: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        context.dtype, context.shape = loss.dtype, loss.shape
        return activation

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gradient,) = gradients
        return gradient, torch.ones(context.shape, dtype=context.dtype, device=gradient.device)


def attach(activation: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """`activation`, whose backward also is that of `loss`, added to whatever else is trained."""
    attached: torch.Tensor = _Attached.apply(activation, loss)  # type: ignore[no-untyped-call]
    return attached


def choose(logits: torch.Tensor, model: Model, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> chosen experts, int64 [T, K], and their weights, float32 [T, K].

    bias [E] moves the choice towards balance and is no part of the weights.
    """
    scores = logits.float()
    scores = scores.sigmoid() if scoring(model) == "sigmoid" else scores.softmax(-1)
    preferred = scores if bias is None else scores + bias
    if (model.n_group or 1) > 1:
        preferred = _within_best_groups(preferred, model)
    chosen = preferred.topk(model.num_experts_per_tok or 1, dim=-1, sorted=False).indices
    weights = scores.gather(1, chosen)
    if normalized(model):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * (model.routed_scaling_factor or 1.0)


def _within_best_groups(scores: torch.Tensor, model: Model) -> torch.Tensor:
    """`scores` [T, E] with those outside each token's best groups at minus infinity. A group is as good as its best
    expert in DeepSeek-V2, as its two best in V3."""
    groups, kept = model.n_group or 1, model.topk_group or 1
    grouped = scores.view(len(scores), groups, -1)
    best = 1 if model.model_type == "deepseek_v2" else 2
    worth = grouped.topk(best, dim=-1).values.sum(-1)
    open_ = torch.zeros_like(worth, dtype=torch.bool).scatter(1, worth.topk(kept, dim=-1, sorted=False).indices, True)
    return grouped.masked_fill(~open_.unsqueeze(-1), float("-inf")).flatten(-2)
