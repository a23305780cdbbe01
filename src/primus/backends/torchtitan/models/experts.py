"""Layers of mixtures that take the place of TorchTitan's through its configuration; weights, names and sharding stay.

TorchTitan's grouped experts cast to bf16 whatever the training precision. That is what a bf16 run wants; an fp32 run
asks for fp32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.models.common.linear import ScaledBiasRowwiseLinear
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, ScaleBiasForward, swiglu

# Shapes: R routed tokens, sorted by expert; D model width; F expert width; E local experts.


class FullPrecisionExperts(GroupedExperts):
    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        ends = num_tokens_per_expert_E.cumsum(0, dtype=torch.int32)
        w1, w2, w3 = (_local(weight).transpose(-2, -1) for weight in (self.w1_EFD, self.w2_EDF, self.w3_EFD))
        gate = torch._grouped_mm(x_RD, w1, offs=ends)
        up = torch._grouped_mm(x_RD, w3, offs=ends)
        return torch._grouped_mm(F.silu(gate) * up, w2, offs=ends)


class FullPrecisionGptOssExperts(GptOssGroupedExperts):
    @dataclass(kw_only=True, slots=True)
    class Config(GptOssGroupedExperts.Config):
        pass

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        ends = num_tokens_per_expert_E.cumsum(0, dtype=torch.int32)
        expert_of_row = torch.repeat_interleave(num_tokens_per_expert_E.long(), output_size=x_RD.shape[0])
        mesh = self.mlp1_weight_EGD.device_mesh if isinstance(self.mlp1_weight_EGD, DTensor) else None
        names = mesh.mesh_dim_names or () if mesh is not None else ()
        tensor_ranks = mesh.size(names.index("tp")) if mesh is not None and "tp" in names else 1
        hidden = torch._grouped_mm(x_RD, _local(self.mlp1_weight_EGD).transpose(-2, -1), offs=ends)
        hidden = swiglu(hidden + _local(self.mlp1_bias_EG)[expert_of_row], limit=self.swiglu_limit)
        out = torch._grouped_mm(hidden, _local(self.mlp2_weight_EDF).transpose(-2, -1), offs=ends)
        # Each tensor-parallel rank adds its share of the bias; the sum over ranks follows outside.
        bias: torch.Tensor = ScaleBiasForward.apply(_local(self.mlp2_bias_ED)[expert_of_row], tensor_ranks, out.dtype)
        return out + bias


class SummedBiasLinear(ScaledBiasRowwiseLinear):
    """A layer whose output is summed over tensor-parallel ranks: each adds its share of the bias. TorchTitan's also
    divides the bias's gradient, which every rank has whole, and so trains it with a fraction of it."""

    @dataclass(kw_only=True, slots=True)
    class Config(ScaledBiasRowwiseLinear.Config):
        pass

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = ScaleBiasForward.apply(_local(self.bias), self.tp_degree, input.dtype)
        return F.linear(input, _local(self.weight), bias)


def _local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
