"""Patches are few, declared, verified, and loud when they do not fit."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest
import torch.distributed

from primus.backends.torchtitan import patches
from primus.errors import EnvironmentFault


def test_a_plan_lists_few_patches_with_their_reasons() -> None:
    for device, most in (("cpu", 15), ("cuda", 3), ("rocm", 3)):
        listed = patches.for_device(device)
        assert len(listed) <= most
        assert all(patch.target and patch.versions and patch.reason and patch.removal for patch in listed)


def test_they_hold_here() -> None:
    listed = patches.for_device("cpu")
    patches.apply(listed)
    patches.apply(listed)  # a second run in the same process
    assert all(mend.holds() for mend in patches.MENDS if mend.patch in listed)
    assert hasattr(torch.distributed, "set_timeout")


def test_a_stubbed_kernel_says_what_it_needs() -> None:
    module = sys.modules[patches.KERNELS]
    if "triton" in sys.modules:
        pytest.skip("triton is installed here, so the kernels are real")
    with pytest.raises(EnvironmentFault, match="needs triton"):
        module.copy_rows_to_peers_kernel()


def test_a_patch_of_another_version_is_refused() -> None:
    (first, *_) = patches.for_device("cpu")
    with pytest.raises(EnvironmentFault, match="no such patch"):
        patches.apply([first.model_copy(update={"reason": "another"})])


def test_a_missing_target_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mend = next(mend for mend in patches.MENDS if "create_block_mask" in mend.patch.target)
    empty = ModuleType("torchtitan.models.common.attention")
    monkeypatch.setitem(sys.modules, "torchtitan.models.common.attention", empty)
    monkeypatch.setattr("torchtitan.models.common.attention", empty)
    with pytest.raises(EnvironmentFault, match="does not apply"):
        patches.apply([mend.patch])


def test_a_patch_without_effect_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mend = dataclasses.replace(patches.MENDS[1], apply=lambda: None, holds=lambda: False)
    monkeypatch.setattr(patches, "MENDS", (mend,))
    with pytest.raises(EnvironmentFault, match="no effect"):
        patches.apply([mend.patch])
