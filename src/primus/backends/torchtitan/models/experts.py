"""Parts of mixtures that take the place of TorchTitan's through its configuration.

TorchTitan's grouped experts cast to bf16 whatever the training precision. That is what a bf16 run wants; an fp32 run
asks for fp32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import spmd_types as spmd  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.linear import ScaledBiasRowwiseLinear
from torchtitan.models.common.moe import GroupedExperts, RoutedExperts
from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, ScaleBiasForward, swiglu
from torchtitan.protocols.module import Module

# Shapes: T tokens; K experts a token; N = T * K; R routed tokens here, sorted by expert; D model width; F expert width;
# G = 2 * F; E local experts.


class SettledExperts(RoutedExperts):
    """Starts when its inputs have arrived.

    TorchTitan gathers a mixture's input over the tensor-parallel ranks in the background and hands it to torch's
    ``local_map``, which waits with ``AsyncCollectiveTensor.wait``. The tensor that it returns is not part of the
    autograd graph (torch 2.13): no gradient passes from the experts to their input, without a word. The gather is still
    under way there only if its result is a view, which it is for a micro batch of one sequence. This class may go when
    ``local_map`` waits within the graph.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(RoutedExperts.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_forward_pre_hook(_settle)  # before local_map, which is inside the parallelized forward


def _settle(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return  # a traced collective is waited for where it is called
    for tensor in inputs:
        if isinstance(tensor, DTensor) and isinstance(tensor._local_tensor, AsyncCollectiveTensor):
            tensor._local_tensor = tensor._local_tensor.wait()


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


class JoinedExperts(GroupedExperts):
    """Gate and up projection in one tensor, their rows in turn (so that tensor parallelism cuts between pairs): one
    product instead of two, and one tensor for Llama 4's one."""

    SHARDING: ClassVar = {"w13_EGD": spmd.S(1), "w2_EDF": spmd.S(2)}
    """What tensor parallelism cuts, in TorchTitan's terms."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def __init__(self, config: Config) -> None:
        Module.__init__(self)  # not the three matrices
        count, width, dim = config.num_experts, config.hidden_dim, config.dim
        self.num_experts = count
        self.w13_EGD = nn.Parameter(torch.empty(count, 2 * width, dim))
        self.w2_EDF = nn.Parameter(torch.empty(count, dim, width))

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        return self._computed(x_RD, num_tokens_per_expert_E, torch.bfloat16).type_as(x_RD)

    def _computed(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ends = num_tokens_per_expert_E.cumsum(0, dtype=torch.int32)
        w13, w2 = (_local(weight).to(dtype).transpose(-2, -1) for weight in (self.w13_EGD, self.w2_EDF))
        hidden = torch._grouped_mm(x_RD.to(dtype), w13, offs=ends)
        return torch._grouped_mm(F.silu(hidden[..., ::2]) * hidden[..., 1::2], w2, offs=ends)


class FullPrecisionJoinedExperts(JoinedExperts):
    @dataclass(kw_only=True, slots=True)
    class Config(JoinedExperts.Config):
        pass

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        return self._computed(x_RD, num_tokens_per_expert_E, x_RD.dtype)


class ScoredInputs(AllToAllTokenDispatcher):
    """Multiplies the experts' inputs by their scores, where TorchTitan's dispatchers multiply the outputs."""

    @dataclass(kw_only=True, slots=True)
    class Config(AllToAllTokenDispatcher.Config):
        pass

    def _local_reorder(
        self, x_TD: torch.Tensor, topk_scores_TK: torch.Tensor, topk_expert_ids_TK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs [N, D] sorted by expert, the token of each [N], and what the outputs are multiplied by [N]."""
        inputs, tokens, scores = super()._local_reorder(x_TD, topk_scores_TK, topk_expert_ids_TK)
        return (inputs.float() * scores.unsqueeze(-1)).to(inputs.dtype), tokens, torch.ones_like(scores)


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
