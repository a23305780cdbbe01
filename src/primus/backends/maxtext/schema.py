"""The snapshot of MaxText's own configuration."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from primus.backends.base import NativeSchema


@cache
def schema() -> NativeSchema:
    return NativeSchema.from_json((files(__package__) / "native_schema.json").read_text(encoding="utf-8"))
