"""The declared changes to MaxText's code: what, why, and when each may go.

A plan lists those that its model needs; ``apply`` makes them before training and verifies every one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from primus.backends.pytorch import mends
from primus.backends.pytorch.mends import EVERY, Mend
from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.plan.plan import Patch

VERSIONS = "maxtext==0.2.5"
LATENT_EPS = 1e-6
"""Of the norms inside latent attention, in Hugging Face's models and on the other engines."""


def _attend() -> None:
    from maxtext.layers import embeddings, nnx_decoders

    def attend_on_embedding(query: Any, table: Any, attend_dtype: Any, config: Any, out_sharding: Any = None) -> Any:
        import jax.numpy as jnp

        query, table = query.astype(attend_dtype), table.astype(attend_dtype)
        explicit = {} if config.shard_mode.value != "explicit" else {"out_sharding": out_sharding}
        return jnp.dot(query, table.T, precision=config.matmul_precision, **explicit)

    attend_on_embedding.__module__ = __name__
    for module in (embeddings, nnx_decoders):
        _replace(module, "attend_on_embedding", attend_on_embedding)


def _attends() -> bool:
    from maxtext.layers import nnx_decoders

    return bool(nnx_decoders.attend_on_embedding.__module__ == __name__)


def _turn() -> None:
    from maxtext.layers.attentions import Attention

    from primus.backends.maxtext.rotary import Rotary

    theirs = Attention.init_rotary_embedding

    def init_rotary_embedding(attention: Any) -> Any:
        model, latent = attention.config.portable, attention.config.attention_type == "mla"
        if model.rope_scaling is None and not latent:
            return theirs(attention)
        width = attention.qk_rope_head_dim if latent else attention.head_dim
        return Rotary(model, width, attention.mesh, attention.dtype, attention.config.shard_mode)

    init_rotary_embedding.__module__ = __name__
    Attention.init_rotary_embedding = init_rotary_embedding


def _turns() -> bool:
    from maxtext.layers.attentions import Attention

    return bool(Attention.init_rotary_embedding.__module__ == __name__)


def _norm() -> None:
    from maxtext.layers.attention_mla import MLA

    theirs = MLA._init_projections

    def _init_projections(attention: Any, *args: Any, **options: Any) -> None:
        theirs(attention, *args, **options)
        for norm in (getattr(attention, "q_norm", None), attention.kv_norm):
            if norm is not None:
                norm.epsilon = LATENT_EPS

    _init_projections.__module__ = __name__
    MLA._init_projections = _init_projections


def _norms() -> bool:
    from maxtext.layers.attention_mla import MLA

    return bool(MLA._init_projections.__module__ == __name__)


def _route() -> None:
    from maxtext.layers import moe
    from maxtext.models import qwen3

    from primus.backends.maxtext.router import Router

    for module in (moe, qwen3):
        _replace(module, "RoutedMoE", Router)


def _routes() -> bool:
    from maxtext.layers import moe
    from maxtext.models import qwen3

    return bool(moe.RoutedMoE.__module__ == qwen3.RoutedMoE.__module__ == "primus.backends.maxtext.router")


def _replace(module: Any, name: str, value: Any) -> None:
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}")
    setattr(module, name, value)


def _mend(target: str, reason: str, removal: str, apply: Callable[[], None], holds: Callable[[], bool]) -> Mend:
    def once() -> None:
        if not holds():  # another run of this process may have made it
            apply()

    patch = Patch(target=target, versions=VERSIONS, reason=reason, removal=removal)
    return Mend(patch, EVERY, lambda: True, once, holds)


TIED = _mend(
    "maxtext.layers.embeddings.attend_on_embedding",
    "a tied embedding is cast to bf16 before the product, whatever the precision",
    "MaxText computes it in the dtype of its configuration",
    _attend,
    _attends,
)
ROTARY = _mend(
    "maxtext.layers.attentions.Attention.init_rotary_embedding",
    "factors of llama3 are fixed in the code, its pairs are other ones; yarn's magnitudes are not Hugging Face's",
    "MaxText takes rope_scaling as config.json has it",
    _turn,
    _turns,
)
LATENT_NORM = _mend(
    "maxtext.layers.attention_mla.MLA._init_projections",
    f"norms inside latent attention have epsilon {LATENT_EPS:g} in Hugging Face's models, not that of the others",
    "MaxText has a key for it",
    _norm,
    _norms,
)
ROUTER = _mend(
    "maxtext.layers.moe.RoutedMoE",
    "scores, groups, normalisation and balance hang on the name of a published model; others are routed otherwise",
    "MaxText takes the choice of experts from its configuration",
    _route,
    _routes,
)
MENDS = (TIED, ROTARY, LATENT_NORM, ROUTER)


def for_model(model: Model) -> tuple[Patch, ...]:
    """The patches a plan for `model` lists."""
    latent = latent_attention(model.model_type)
    needed = {
        TIED: model.tie_word_embeddings,
        ROTARY: latent or model.rope_scaling is not None,
        LATENT_NORM: latent,
        ROUTER: bool(model.num_experts),
    }
    return tuple(mend.patch for mend in MENDS if needed[mend])


def apply(patches: Sequence[Patch]) -> None:
    """Make the `patches` of a plan in this process; raises EnvironmentFault for one that fails."""
    mends.apply(MENDS, patches, environment="jax")
