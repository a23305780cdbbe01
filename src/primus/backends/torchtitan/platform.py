"""The CPU as a device of TorchTitan."""

from __future__ import annotations

import os
import platform
import resource
import types
from typing import Any

import torch


def cpu_name() -> str:
    """Model name of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or "cpu"
    return platform.processor() or "cpu"


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
