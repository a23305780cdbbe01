"""The rotary embedding, with frequencies as Hugging Face's models define them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import nn


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
