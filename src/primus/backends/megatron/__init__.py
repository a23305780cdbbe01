"""Megatron as a backend."""

from primus.backends.megatron.backend import MegatronBackend

__all__ = ["MegatronBackend"]
