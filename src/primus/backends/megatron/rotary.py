"""The rotary embedding, with frequencies as Hugging Face's models define them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import nn

from primus.config.experiment import Model, RopeScaling


class Rotary(RotaryEmbedding):  # type: ignore[misc]
    """Angles of the positions of this context-parallel rank.

    Its place in the model is one where Megatron calls a rotary embedding. paired: neighbouring elements of a head turn
    together, not one of each half. magnitude: given where Megatron wants yarn's factor along with the angles.
    """

    def __init__(
        self, inverse: torch.Tensor, *, group: Any, paired: bool = False, magnitude: float | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.inv_freq = inverse
        self._ranks, self._rank = group.size(), group.rank()
        self._paired, self._magnitude = paired, magnitude
        self._angles = cache(self._compute)

    def forward(self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: Any = None) -> Any:
        """float32 [tokens of this rank, 1, 1, width], with the magnitude if there is one."""
        angles = self._angles(max_seq_len)
        return angles if self._magnitude is None else (angles, self._magnitude)

    def _compute(self, length: int) -> torch.Tensor:
        positions = torch.arange(length, dtype=torch.float32, device=self.inv_freq.device)
        if self._ranks > 1:
            chunks = positions.chunk(2 * self._ranks)
            positions = torch.cat([chunks[self._rank], chunks[2 * self._ranks - 1 - self._rank]])
        angles = torch.outer(positions, self.inv_freq)
        angles = angles.repeat_interleave(2, dim=-1) if self._paired else torch.cat((angles, angles), dim=-1)
        return angles[:, None, None, :]


def frequencies(model: Model, width: int) -> tuple[torch.Tensor, float]:
    """Radians a position turns each pair of a head of `width`, float32 [width / 2], and the factor on queries and keys
    (1 unless yarn).

    llama3: wavelengths beyond the original window are stretched by the factor, those well inside it are kept, and
    between the two bounds they are blended. yarn: the same by the number of rotations within the original window
    (arXiv:2309.00071, section 3.2), and attention sharpens with the extension (section 3.4).
    """
    plain = model.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaling = model.rope_scaling
    if scaling is None:
        return plain, 1.0
    stretched, window = plain / scaling.factor, scaling.original_max_position_embeddings
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
        rotations = window * plain / (2 * math.pi)
        # both bounds may be the same: then there is no blend
        kept = ((rotations - low) / (high - low)).clamp(0, 1) if high > low else (rotations >= low).float()
        return kept * plain + (1 - kept) * stretched, 1.0
    kept = 1 - _ramp(model.rope_theta, width, scaling)
    return kept * plain + (1 - kept) * stretched, _magnitude(scaling)


def _magnitude(scaling: RopeScaling) -> float:
    """yarn's factor on queries and keys. DeepSeek's two parameters divide it by one that goes to the softmax."""
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(theta: float, width: int, scaling: RopeScaling) -> torch.Tensor:
    """0 for pairs that turn often enough to be kept, 1 for those to be stretched, float32 [width / 2]."""

    def pair(rotations: float) -> float:
        window = scaling.original_max_position_embeddings
        return width * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast or 32.0)), 0)
    high = min(math.ceil(pair(scaling.beta_slow or 1.0)), width - 1)
    steps = torch.arange(width // 2, dtype=torch.float32)
    return ((steps - low) / (max(high - low, 0.001))).clamp(0, 1)
