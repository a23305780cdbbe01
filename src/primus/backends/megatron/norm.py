"""Root-mean-square norms for Megatron's sequence parallelism, which sums the gradients of weights marked for it."""

from __future__ import annotations

from typing import Any

from torch import nn

LATENT_EPS = 1e-6
"""Of the norms of compressed queries, keys and values, whatever `rms_norm_eps` says: so in DeepSeek's and transformers'
code."""


class Norm(nn.RMSNorm):
    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LatentNorm(Norm):
    def __init__(self, config: Any, hidden_size: int, **_: Any) -> None:
        super().__init__(config, hidden_size, LATENT_EPS)
