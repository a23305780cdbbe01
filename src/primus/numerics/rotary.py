"""Frequencies of rotary embeddings, as Hugging Face's models define them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primus.config.experiment import Model, RopeScaling


def frequencies(model: Model, width: int) -> tuple[NDArray[np.float32], float]:
    """Radians a position turns each pair of a head of `width`, float32 [width / 2], and the factor on queries and keys
    (1 unless yarn).

    llama3: wavelengths beyond the original window are stretched by the factor, those well inside it are kept, and
    between the two bounds they are blended. yarn: the same by the number of rotations within the original window
    (arXiv:2309.00071, section 3.2), and attention sharpens with the extension (section 3.4).
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (1.0 / np.float32(model.rope_theta) ** exponents).astype(np.float32)
    scaling = model.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
        rotations = scaling.original_max_position_embeddings * plain / (2 * math.pi)
        # both bounds may be the same: then there is no blend
        kept = np.clip((rotations - low) / (high - low), 0, 1) if high > low else rotations >= low
        magnitude = 1.0
    else:
        kept = 1 - _ramp(model.rope_theta, width, scaling)
        magnitude = _magnitude(scaling)
    return (kept * plain + (1 - kept) * plain / scaling.factor).astype(np.float32), magnitude


def _magnitude(scaling: RopeScaling) -> float:
    """yarn's factor on queries and keys. DeepSeek's two parameters divide it by one that goes to the softmax."""
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(theta: float, width: int, scaling: RopeScaling) -> NDArray[np.float64]:
    """0 for pairs that turn often enough to be kept, 1 for those to be stretched, [width / 2]."""

    def pair(rotations: float) -> float:
        window = scaling.original_max_position_embeddings
        return width * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast or 32.0)), 0)
    high = min(math.ceil(pair(scaling.beta_slow or 1.0)), width - 1)
    return np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0, 1)
