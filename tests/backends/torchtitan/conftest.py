"""Every test here runs TorchTitan itself, on the CPU."""

from primus.backends.torchtitan import patches

patches.apply(patches.for_device("cpu"))
