"""The declared changes to Megatron's code: what, why, and when each may go.

Everything else extends Megatron through its specs. Where there is an accelerator only the first may be needed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence

from primus.backends.pytorch import mends
from primus.backends.pytorch.mends import CPU, EVERY, Mend
from primus.plan.plan import Patch

VERSIONS = "megatron-core>=0.16.1,<0.20"
STASH = "megatron.core.transformer.moe.ops.paged_stash"


def _stash_cannot_be_imported() -> bool:
    from primus.backends.megatron.compat import version

    return version() >= (0, 18) and importlib.util.find_spec("triton") is None


def _stub_stash() -> None:
    """Stand in for the one module that imports triton unguarded. Its kernels serve a GPU's activation offloading."""
    module = types.ModuleType(STASH)
    for name in ("paged_stash_copy_kernel", "paged_stash_pop_kernel"):
        setattr(module, name, None)
    module.GLOBAL_BLOCK_SIZE = 1024  # type: ignore[attr-defined]
    sys.modules[STASH] = module


def _transformer_engine_missing() -> bool:
    return importlib.util.find_spec("transformer_engine") is None


def _say_it_is_missing() -> None:
    from megatron.core.post_training.modelopt.layers import Linear
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    for name in ("HAVE_TE", "Linear"):
        if not hasattr(multi_latent_attention, name):
            raise AttributeError(f"megatron.core.transformer.multi_latent_attention has no {name}")
    multi_latent_attention.HAVE_TE, multi_latent_attention.Linear = False, Linear
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _known_to_be_missing() -> bool:
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    known = not multi_latent_attention.HAVE_TE and multi_latent_attention.Linear is not None
    return known and moe_utils.te_general_gemm is None


def _always() -> bool:
    return True


def _cover() -> None:
    from primus.backends.megatron import compat, cpu

    compat.import_everything()
    cpu.cover()


def _covered() -> bool:
    from primus.backends.megatron import cpu

    return cpu.covered()


def _use_random_state() -> None:
    from primus.backends.megatron import cpu

    cpu.use_cpu_random_state()


def _uses_random_state() -> bool:
    from primus.backends.megatron import cpu

    return cpu.uses_cpu_random_state()


def _split_on_cpu() -> None:
    from primus.backends.megatron import cpu

    cpu.split_sizes_on_cpu()


def _splits_on_cpu() -> bool:
    from primus.backends.megatron import cpu

    return cpu.splits_on_cpu()


MENDS: tuple[Mend, ...] = (
    Mend(
        Patch(
            target=STASH,
            versions="megatron-core>=0.18,<0.20",
            reason="it imports triton although nothing of it is used; a build of torch without triton cannot",
            removal="Megatron imports triton where it is used",
        ),
        EVERY,
        _stash_cannot_be_imported,
        _stub_stash,
        lambda: STASH in sys.modules,
    ),
    Mend(
        Patch(
            target="megatron.core.transformer.multi_latent_attention.HAVE_TE, Linear, moe.moe_utils.te_general_gemm",
            versions=VERSIONS,
            reason="without TransformerEngine the first is true in 0.16.1, as its wrappers can be imported; the second "
            "does not need it, but is missing in 0.19.2; the last is undefined in 0.16.1",
            removal="both modules ask whether TransformerEngine itself is there",
        ),
        EVERY,
        _transformer_engine_missing,
        _say_it_is_missing,
        _known_to_be_missing,
    ),
    Mend(
        Patch(
            target="megatron.core.*.torch",
            versions=VERSIONS,
            reason="the device is named in the code and is always a GPU; its modules see torch with the CPU as CUDA",
            removal="Megatron takes the device from its configuration",
        ),
        CPU,
        _always,
        _cover,
        _covered,
    ),
    Mend(
        Patch(
            target="megatron.core.tensor_parallel.random._get_cuda_rng_state, _set_cuda_rng_state",
            versions=VERSIONS,
            reason="they read and set the random state of a GPU through private parts of torch.cuda",
            removal="Megatron takes the device from its configuration",
        ),
        CPU,
        _always,
        _use_random_state,
        _uses_random_state,
    ),
    Mend(
        Patch(
            target="megatron.core.transformer.moe.moe_utils.maybe_move_tensor_to_cpu",
            versions=VERSIONS,
            reason="split sizes become lists only where they come from a GPU, and gloo wants lists too",
            removal="Megatron converts them on every device",
        ),
        CPU,
        _always,
        _split_on_cpu,
        _splits_on_cpu,
    ),
)


def for_device(device: str) -> tuple[Patch, ...]:
    """The patches a plan for `device` (cpu, cuda, rocm) lists."""
    return mends.for_device(MENDS, device)


def apply(patches: Sequence[Patch]) -> None:
    """Make the `patches` of a plan in this process; raises EnvironmentFault for one that fails."""
    mends.apply(MENDS, patches)
