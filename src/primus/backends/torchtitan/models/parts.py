"""Pieces that every family is built from: TorchTitan's own configuration classes, with our dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init

from primus.config.experiment import Model, Moe
from primus.config.layers import dense_layers
from primus.errors import EnvironmentFault

BALANCE_RATE = 1e-3
"""Step of the router bias towards balance, as in DeepSeek-V3 (arXiv:2412.19437, section 4.2)."""

Init = dict[str, Callable[[nn.Parameter], Any]]


class _Skip(dict[str, Callable[[nn.Parameter], Any]]):
    """Leaves every parameter as it is: the values come from the random start, an import or a checkpoint."""

    def __missing__(self, name: str) -> Callable[[nn.Parameter], Any]:
        skip: Callable[[nn.Parameter], Any] = skip_param_init
        return skip

    def __contains__(self, name: object) -> bool:
        return True


@dataclass(frozen=True)
class Parts:
    """Builds the shared pieces of one model."""

    model: Model
    moe: Moe
    seq_length: int
    attention: Literal["sdpa", "flex"]
    full_precision: bool

    @property
    def head_dim(self) -> int:
        return self.model.head_dim or self.model.hidden_size // self.model.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.model.num_key_value_heads or self.model.num_attention_heads

    @property
    def native_start(self) -> bool:
        return self.model.init == "native"

    def init(self, layer: int | None = None) -> Init:
        """TorchTitan's own start with ``model.init_std``: truncated normal, scaled down with depth on the projections
        into the residual stream (`layer` given)."""
        if not self.native_start:
            return _Skip()
        std = self.model.init_std if layer is None else depth_scaled_std(self.model.init_std, layer)
        return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}

    def experts_init(self, layer: int, names: dict[str, str]) -> Init:
        """names: parameter -> ``in`` (projections into the expert), ``out`` or ``bias``."""
        if not self.native_start:
            return _Skip()
        inits = {"in": self.init()["weight"], "out": self.init(layer)["weight"], "bias": nn.init.zeros_}
        return {name: inits[kind] for name, kind in names.items()}

    def norm(self, width: int, eps: float | None = None) -> Any:
        init: Init = {"weight": nn.init.ones_} if self.native_start else _Skip()
        return RMSNorm.Config(normalized_shape=width, eps=eps or self.model.rms_norm_eps, param_init=init)

    def linear(self, in_features: int, out_features: int, *, layer: int | None = None, bias: bool = False) -> Any:
        return Linear.Config(in_features=in_features, out_features=out_features, bias=bias, param_init=self.init(layer))

    def inner_attention(self) -> Any:
        return ScaledDotProductAttention.Config() if self.attention == "sdpa" else FlexAttention.Config()

    def root(self) -> dict[str, Any]:
        """Arguments of a ``Decoder.Config`` outside its layers."""
        model = self.model
        embedding: Init = _Skip()
        if self.native_start and not model.tie_word_embeddings:
            embedding = {"weight": partial(nn.init.normal_, std=model.init_std)}
        return {
            "dim": model.hidden_size,
            "vocab_size": model.vocab_size,
            "enable_weight_tying": model.tie_word_embeddings,
            "tok_embeddings": Embedding.Config(
                num_embeddings=model.vocab_size, embedding_dim=model.hidden_size, param_init=embedding
            ),
            "norm": self.norm(model.hidden_size),
            "lm_head": self.linear(model.hidden_size, model.vocab_size),
        }

    def gqa(self, layer: int, rope: Any, *, qk_norm: bool = False, qkv_bias: bool = False) -> Any:
        """Grouped-query attention with one fused projection of queries, keys and values."""
        config = make_gqa_config(
            dim=self.model.hidden_size,
            n_heads=self.model.num_attention_heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            wqkv_param_init=self.init(),
            wo_param_init=self.init(layer),
            inner_attention=self.inner_attention(),
            rope=rope,
            fuse_qkv=True,
            qk_norm=self.norm(self.head_dim) if qk_norm else None,
        )
        config.qkv_linear.wqkv.bias = qkv_bias
        if not self.native_start:
            # TorchTitan wraps the initialiser in one that draws query, key and value apart and joins them.
            config.qkv_linear.wqkv.param_init = self.init()
        return config

    def balancing_hook(self) -> Callable[..., None] | None:
        """What moves the routers' balancing biases before each update."""
        balanced = self.moe.balance == "bias" and dense_layers(self.model) < self.model.num_hidden_layers
        return register_moe_load_balancing_hook if balanced else None

    def feed_forward(self, layer: int, width: int) -> Any:
        return make_ffn_config(
            dim=self.model.hidden_size, hidden_dim=width, w1_param_init=self.init(), w2w3_param_init=self.init(layer)
        )

    def rope(self, pairs: Literal["neighbours", "halves"], dim: int, *, gpt_oss: bool = False) -> Any:
        """Rotary embedding of `dim` dimensions; `pairs` says which rows of a head turn together. With yarn the rotation
        also scales as in transformers, except for gpt_oss, where TorchTitan folds that into the softmax scale and the
        bounds of the blend are not rounded."""
        kind = ComplexRoPE if pairs == "neighbours" else CosSinRoPE
        arguments: dict[str, Any] = {"dim": dim, "max_seq_len": self.seq_length, "theta": self.model.rope_theta}
        scaling = self.model.rope_scaling
        if scaling is None:
            return kind.Config(**arguments)
        if scaling.rope_type == "llama3":
            return kind.Config(
                **arguments,
                scaling="llama",
                scaling_factor=scaling.factor,
                low_freq_factor=scaling.low_freq_factor,
                high_freq_factor=scaling.high_freq_factor,
                original_max_position_embeddings=scaling.original_max_position_embeddings,
            )
        arguments |= {
            "scaling": "yarn",
            "rope_factor": scaling.factor,
            "beta_fast": scaling.beta_fast or 32.0,
            "beta_slow": scaling.beta_slow or 1.0,
            "original_seq_len": scaling.original_max_position_embeddings,
            "truncate": not gpt_oss,
        }
        if gpt_oss:
            return kind.Config(**arguments)
        scaled = YarnComplexRoPE if pairs == "neighbours" else YarnCosSinRoPE
        return scaled.Config(**arguments, magnitude=rotary_magnitude(self.model))


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """Yarn's growth of attention logits, ``0.1 * weight * ln(factor) + 1`` (arXiv:2309.00071, equation 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_magnitude(model: Model) -> float:
    """The factor that transformers multiplies a yarn embedding's cosine and sine by."""
    scaling = model.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_magnitude(scaling.factor, scaling.mscale) / yarn_magnitude(scaling.factor, scaling.mscale_all_dim)
    return yarn_magnitude(scaling.factor)


class YarnComplexRoPE(ComplexRoPE):
    """Rotary embedding of neighbouring rows whose rotation also scales by `magnitude`."""

    @dataclass(kw_only=True, slots=True)
    class Config(ComplexRoPE.Config):
        magnitude: float = 1.0

    def _precompute_cache(self) -> torch.Tensor:
        cache: torch.Tensor = super()._precompute_cache() * self.config.magnitude
        return cache


class YarnCosSinRoPE(CosSinRoPE):
    """Rotary embedding of halves whose rotation also scales by `magnitude`."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        magnitude: float = 1.0

    def _precompute_cache(self) -> torch.Tensor:
        cache: torch.Tensor = super()._precompute_cache() * self.config.magnitude
        return cache


def convert_fp8(spec: Any, options: Mapping[str, Any]) -> None:
    """Swap the linear layers of `spec` for float8 ones, as TorchTitan's ``Float8LinearConverter`` does with `options`.

    Raises EnvironmentFault when torchao is missing or the device has no float8 arithmetic.
    """
    from torchtitan.components.quantization.float8 import Float8LinearConverter

    try:
        spec.model = Float8LinearConverter.Config(**options).build().convert(spec.model)
    except (ImportError, ValueError) as error:
        raise EnvironmentFault(
            f"precision fp8 is not available here: {error}", where="precision", remedy="install torchao, or use bf16"
        ) from error
