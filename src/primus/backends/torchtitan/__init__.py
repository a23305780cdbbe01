"""TorchTitan as a backend: PyTorch-native pre-training on ROCm, CUDA and CPU.

Importing this package costs nothing heavy; torch and torchtitan are first imported by ``TorchTitanBackend.run``.
"""

from primus.backends.torchtitan.backend import TorchTitanBackend

__all__ = ["TorchTitanBackend"]
