"""One gradient norm over the whole model, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

from primus.backends.pytorch.norms import squared_norm


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], limit: float, *, stage_ranks: int, device: torch.device
) -> torch.Tensor:
    """Scale all gradients down together so that their norm is at most `limit` (0: never). Returns the norm, float32 [].

    stage_ranks: ranks that share this rank's pipeline stage, which hold its parameters in pieces or whole. TorchTitan's
    own norm takes torch's over whole tensors, which on a CPU depends on how they are cut.
    """
    by_copies: dict[int, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            local, pieces = own_gradient(parameter)
            by_copies.setdefault(stage_ranks // pieces, []).append(local)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for copies, gradients in by_copies.items():
        total += squared_norm(gradients, device) / copies
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    norm = total.sqrt().float()
    # the small number in the divisor is torch's and every engine's
    factor = ((limit or math.inf) / (norm + 1e-6)).clamp(max=1.0)
    for gradients in by_copies.values():
        torch._foreach_mul_(gradients, factor)
    return norm


def own_gradient(parameter: torch.nn.Parameter) -> tuple[torch.Tensor, int]:
    """This rank's part of a gradient, and in how many parts the whole is."""
    gradient = parameter.grad
    assert gradient is not None
    if not isinstance(gradient, DTensor):
        return gradient, 1
    if not all(isinstance(placement, Shard | _StridedShard | Replicate) for placement in gradient.placements):
        assert isinstance(parameter, DTensor)
        parameter.grad = gradient = gradient.redistribute(placements=parameter.placements)  # sums what is still apart
    sizes = zip(map(int, gradient.device_mesh.shape), gradient.placements, strict=True)
    return gradient.to_local(), math.prod(size for size, placement in sizes if not isinstance(placement, Replicate))
