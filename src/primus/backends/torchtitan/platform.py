"""The CPU as a device of TorchTitan."""

from __future__ import annotations

import os
import types
from typing import Any

import torch

from primus.backends.machine import cpu_name, peak_resident_bytes


class CpuDevice(types.ModuleType):
    """``torch.cpu`` with the functions of ``torch.cuda`` that TorchTitan calls on its device module."""

    def __init__(self) -> None:
        super().__init__("primus_cpu_device")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def set_device(self, device: object) -> None:
        """There is one CPU."""

    def synchronize(self, device: object = None) -> None:
        """Operations on a CPU are done when they return."""

    def empty_cache(self) -> None:
        """There is no caching allocator."""

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """The kernel keeps the peak of the whole process."""

    def get_device_name(self, device: object = None) -> str:
        return cpu_name()

    def get_device_properties(self, device: object = None) -> types.SimpleNamespace:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return types.SimpleNamespace(name=cpu_name(), total_memory=memory)

    def memory_stats(self, device: object = None) -> dict[str, int]:
        peak = peak_resident_bytes()
        return {"active_bytes.all.peak": peak, "reserved_bytes.all.peak": peak, "num_alloc_retries": 0, "num_ooms": 0}
