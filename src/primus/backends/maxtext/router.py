"""The choice of experts, as each family defines it, in MaxText's mixture of experts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from maxtext.layers.moe import MoEBiasVar, RoutedMoE

from primus.config.experiment import Model
from primus.config.routing import normalized, scoring

# Shapes: B sequences of S tokens, E experts, K experts a token is routed to.


class Router(RoutedMoE):  # type: ignore[misc]
    """MaxText's experts behind a router that computes in fp32 whatever the precision."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The gate gives the bare product. Scores, and the bias that moves the choice but not the weights, are ours
        self.gate.score_func, self.gate.use_bias, self.gate.matmul_precision = "", False, "highest"
        if self.gate.bias is not None:  # no parameter: gradients do not train it
            axes = self.gate.kernel_axes[-1:]
            self.gate.bias = MoEBiasVar(self.gate.bias.get_value(), out_sharding=axes)

    def __call__(self, *args: Any, **options: Any) -> tuple[jax.Array, jax.Array | None, None]:
        """As MaxText's. What the biases will change by is left where the training step looks for it; only its DeepSeek
        layers would do that."""
        output, loss, updates = super().__call__(*args, **options)
        if updates is not None:
            self.sow(nnx.Intermediate, "moe_bias_updates", updates)
        return output, loss, None

    def get_topk(self, gate_logits: jax.Array, *_: Any, **__: Any) -> tuple[jax.Array, jax.Array]:
        """Logits [B, S, E] -> weights of the chosen experts, float32 [B, S, K], and which they are, int32."""
        bias = None if self.gate.bias is None else self.gate.bias[...]
        return choose(gate_logits, self.config.portable, bias)

    def megatron_seq_aux_loss(self, scores: jax.Array) -> jax.Array:
        """Logits [B, S, E] -> the auxiliary loss of one layer, times its coefficient: the mean over sequences of ``E *
        sum of f P``, ``f`` an expert's share of the sequence's choices and ``P`` its mean probability in it. As in
        Megatron the choices are those by bare scores, and sigmoids of a token are made to sum to one."""
        probabilities = _scores(scores, self.config.portable)
        probabilities /= probabilities.sum(-1, keepdims=True) + 1e-20
        uses = jax.lax.top_k(probabilities, self.num_experts_per_tok)[1]
        loss: jax.Array = self.load_balance_loss(uses, probabilities)
        return loss


def choose(logits: jax.Array, model: Model, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """logits [..., E] -> weights of the chosen experts, float32 [..., K], and their numbers, int32 [..., K].

    bias [E] moves the choice towards balance and is no part of the weights.
    """
    scores = _scores(logits, model)
    preferred = scores if bias is None else scores + bias
    if (model.n_group or 1) > 1:
        preferred = _within_best_groups(preferred, model)
    chosen = jax.lax.top_k(jax.lax.stop_gradient(preferred), model.num_experts_per_tok or 1)[1]
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if normalized(model):
        weights /= weights.sum(-1, keepdims=True) + 1e-20
    return weights * (model.routed_scaling_factor or 1.0), chosen


def _scores(logits: jax.Array, model: Model) -> jax.Array:
    logits = logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits) if scoring(model) == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def _within_best_groups(scores: jax.Array, model: Model) -> jax.Array:
    """`scores` [..., E] with those outside each token's best groups at minus infinity. A group is as good as its best
    expert in DeepSeek-V2, as its two best in V3."""
    groups, kept = model.n_group or 1, model.topk_group or 1
    grouped = scores.reshape(*scores.shape[:-1], groups, -1)
    best = 1 if model.model_type == "deepseek_v2" else 2
    worth = jax.lax.top_k(grouped, best)[0].sum(-1)
    open_ = jax.nn.one_hot(jax.lax.top_k(worth, kept)[1], groups, dtype=bool).any(-2)
    return jnp.where(open_[..., None], grouped, -jnp.inf).reshape(scores.shape)
