"""FlexAttention where its backward does not run: dense masked attention, put in place by TorchTitan's ``@override``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torchtitan.config.override import derive, override
from torchtitan.models.common.attention import FlexAttention

OVERRIDE = f"{__name__}.masked_attention"
"""Its entry in TorchTitan's ``override.imports``."""


class MaskedAttention(FlexAttention):
    """FlexAttention's interface on dense scaled-dot-product attention with a boolean mask: FlexAttention has no
    backward on a CPU. Memory grows with the square of the sequence length, as it does for any eager attention."""

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        pass

    def forward(  # type: ignore[no-untyped-def]
        self,
        q_BLNH,
        k_BLNH,
        v_BLNH,
        *,
        attention_masks,
        score_mod=None,
        scale=None,
        enable_gqa=False,
        out_transform=None,
        **kwargs,
    ):
        """q [B, L, N, H], k and v [B, L, N_kv, H] -> [B, L, N, H]."""
        if score_mod is not None:
            raise NotImplementedError("FlexAttention's score_mod on a CPU")
        q, k, v = (tensor.transpose(1, 2) for tensor in (q_BLNH, k_BLNH, v_BLNH))
        mask = dense_mask(attention_masks, q.shape[-2], k.shape[-2])
        if out_transform is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
            return out.transpose(1, 2)
        # gpt_oss rescales the output by the scores' log-sum-exp (its sinks), which fused kernels do not return.
        if k.shape[1] != q.shape[1]:
            repeats = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = (q @ k.transpose(-2, -1)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores.masked_fill(~mask, float("-inf"))
        lse = scores.logsumexp(dim=-1)
        out = ((scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v).transpose(1, 2)
        return out_transform(out, lse.transpose(1, 2))


def dense_mask(block_mask: BlockMask, queries: int, keys: int) -> torch.Tensor:
    """`block_mask` as a boolean tensor [B or 1, heads or 1, queries, keys], made once per mask."""
    cached: torch.Tensor | None = getattr(block_mask, "primus_dense", None)
    if cached is None or cached.shape[-2:] != (queries, keys):
        cached = create_mask(
            block_mask.mask_mod,
            block_mask.shape[0],
            block_mask.shape[1],
            queries,
            keys,
            device=block_mask.kv_indices.device,
        )
        block_mask.primus_dense = cached  # type: ignore[attr-defined]
    return cached


@override(target=FlexAttention.Config, description="dense masked attention, as FlexAttention has no backward on a CPU")
def masked_attention(config: FlexAttention.Config) -> MaskedAttention.Config:
    return derive(config, MaskedAttention.Config)
