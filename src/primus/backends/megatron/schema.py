"""The snapshot of Megatron's own configuration that belongs to the version in use."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

from primus.backends.base import NativeSchema

VERSIONS = {(3, 11): "0.16.1", (3, 12): "0.19.2"}
"""Python -> megatron-core that the lock has for it: from 0.17 on it wants Python 3.12."""


def snapshot_name(engine: str) -> str:
    """File beside this module with the keys of megatron-core `engine`."""
    return f"native_schema-{engine}.json"


def engine_version() -> str:
    """The installed megatron-core, or the one that an environment of this Python would get. A version without a
    snapshot does not count: what is planned then is refused by the workers, who say which version they need."""
    try:
        installed = version("megatron-core")
    except PackageNotFoundError:
        installed = ""
    return installed if installed in VERSIONS.values() else VERSIONS[(3, 11) if sys.version_info < (3, 12) else (3, 12)]


def schema() -> NativeSchema:
    """The keys of the version in use."""
    return _read(engine_version())


def described_schema() -> NativeSchema:
    """The keys that the documentation lists, wherever it is written: those of the older version."""
    return _read(VERSIONS[3, 11])


@cache
def _read(engine: str) -> NativeSchema:
    return NativeSchema.from_json((files(__package__) / snapshot_name(engine)).read_text(encoding="utf-8"))
