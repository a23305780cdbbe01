"""The declared changes to TorchTitan's and PyTorch's code: what, why, and when each may go.

Everything else extends TorchTitan through its own seams (configs, subclasses, ``@override``). A plan lists the patches
of its device; ``apply`` makes them before any other TorchTitan module is imported and verifies every one. A patch whose
reason is absent on this machine (a newer torch, an installed triton) is left out; one whose target is missing is an
error.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from primus.backends.pytorch import mends
from primus.backends.pytorch.mends import CPU, EVERY, Mend
from primus.errors import EnvironmentFault
from primus.plan.plan import Patch

VERSIONS = "torchtitan==0.3.0"
KERNELS = "torchtitan.distributed.minimal_async_ep.kernels"


def _triton_missing() -> bool:
    return importlib.util.find_spec("triton") is None


def _stub_kernels() -> None:
    """Stand in for the one module that needs triton at import. Its kernels serve an expert-parallel dispatcher for
    GPUs; a use of any of them says so."""

    def missing(name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def kernel(*_: object, **__: object) -> None:
            raise EnvironmentFault(f"{KERNELS}.{name} needs triton, which this environment does not have")

        return kernel

    module = types.ModuleType(KERNELS)
    module.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules[KERNELS] = module


def _kernels_import() -> bool:
    return hasattr(sys.modules.get(KERNELS), "copy_rows_to_peers_kernel")


def _use_cpu() -> None:
    from torchtitan.tools import utils

    from primus.backends.torchtitan.platform import CpuDevice

    if not (hasattr(utils, "device_type") and hasattr(utils, "device_module")):
        raise AttributeError("torchtitan.tools.utils has no device_type and device_module")
    settings: Any = utils
    settings.device_type, settings.device_module = "cpu", CpuDevice()


def _cpu_in_use() -> bool:
    from torchtitan.distributed import utils as importer
    from torchtitan.tools import utils

    return utils.device_type == "cpu" == importer.device_type


def _no_set_timeout() -> bool:
    import torch.distributed as dist

    return not hasattr(dist, "set_timeout")


def _add_set_timeout() -> None:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    dist.set_timeout = _set_pg_timeout  # type: ignore[attr-defined]


def _eager_block_mask() -> None:
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.models.common import attention

    if not hasattr(attention, "_compiled_create_block_mask"):
        raise AttributeError("torchtitan.models.common.attention has no _compiled_create_block_mask")
    attention._compiled_create_block_mask = create_block_mask


def _block_mask_is_eager() -> bool:
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.models.common import attention

    return attention._compiled_create_block_mask is create_block_mask


def _traceless_inference() -> None:
    import torch
    from torch.distributed.pipelining.stage import PipelineStage

    prepare, clean_up = PipelineStage._prepare_forward_infra, PipelineStage._post_metadata_inference_cleanup
    kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def keeping(stage: PipelineStage, *args: Any, **options: Any) -> Any:
        kept[id(stage)] = [(buffer, buffer.detach().clone()) for buffer in stage.submod.buffers()]
        return prepare(stage, *args, **options)

    def restoring(stage: PipelineStage) -> None:
        clean_up(stage)
        with torch.no_grad():
            for buffer, content in kept.pop(id(stage), ()):
                buffer.copy_(content)

    changes: Any = PipelineStage
    changes._prepare_forward_infra, changes._post_metadata_inference_cleanup = keeping, restoring


def _inference_is_traceless() -> bool:
    from torch.distributed.pipelining.stage import PipelineStage

    return PipelineStage._prepare_forward_infra.__module__ == __name__


def _always() -> bool:
    return True


MENDS: tuple[Mend, ...] = (
    Mend(
        Patch(
            target=KERNELS,
            versions=VERSIONS,
            reason="importing any model imports these triton kernels; a build of torch without triton cannot",
            removal="TorchTitan imports them when that dispatcher is used",
        ),
        EVERY,
        _triton_missing,
        _stub_kernels,
        _kernels_import,
    ),
    Mend(
        Patch(
            target="torchtitan.tools.utils.device_type, device_module",
            versions=VERSIONS,
            reason="the device is chosen at import and is never the CPU; torch.cpu lacks five functions it calls",
            removal="TorchTitan takes the device from its configuration",
        ),
        CPU,
        _always,
        _use_cpu,
        _cpu_in_use,
    ),
    Mend(
        Patch(
            target="torch.distributed.set_timeout",
            versions=VERSIONS + ", torch without torch.distributed.set_timeout",
            reason="TorchTitan calls a function that only nightly builds of torch have",
            removal="the locked torch has it",
        ),
        EVERY,
        _no_set_timeout,
        _add_set_timeout,
        lambda: not _no_set_timeout(),
    ),
    Mend(
        Patch(
            target="torch.distributed.pipelining.stage.PipelineStage",
            versions="torch==2.13.0",
            reason="to learn its shapes, a stage computes a dummy batch whose tokens the experts count as real ones",
            removal="torch restores a stage's buffers, or infers on meta tensors",
        ),
        EVERY,
        lambda: not _inference_is_traceless(),
        _traceless_inference,
        _inference_is_traceless,
    ),
    Mend(
        Patch(
            target="torchtitan.models.common.attention._compiled_create_block_mask",
            versions=VERSIONS,
            reason="compiling the mask builder costs seconds and a C++ compiler on a CPU, where it gains nothing",
            removal="TorchTitan lets a configuration choose",
        ),
        CPU,
        _always,
        _eager_block_mask,
        _block_mask_is_eager,
    ),
)


def for_device(device: str) -> tuple[Patch, ...]:
    """The patches a plan for `device` (cpu, cuda, rocm) lists."""
    return mends.for_device(MENDS, device)


def apply(patches: Sequence[Patch]) -> None:
    """Make the `patches` of a plan in this process; raises EnvironmentFault for one that fails."""
    mends.apply(MENDS, patches)
