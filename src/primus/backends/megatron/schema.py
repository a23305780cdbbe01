"""The snapshot of Megatron's own configuration that belongs to the version in use."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from primus.backends.base import NativeSchema

VERSIONS = {(3, 11): "0.16.1", (3, 12): "0.19.2"}
"""Python -> megatron-core that the lock has for it: from 0.17 on it wants Python 3.12."""


def engine_version() -> str:
    """The installed megatron-core, or the one that an environment of this Python would get."""
    try:
        return version("megatron-core")
    except PackageNotFoundError:
        return VERSIONS[(3, 11) if sys.version_info < (3, 12) else (3, 12)]


@cache
def schema() -> NativeSchema:
    return NativeSchema({"megatron-core": engine_version(), "torch": "2.13.0"}, {})
