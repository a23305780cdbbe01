"""The snapshot of MaxText's own configuration."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from primus.backends.base import NativeKey, NativeSchema


@cache
def schema() -> NativeSchema:
    snapshot = json.loads((files(__package__) / "native_schema.json").read_text(encoding="utf-8"))
    keys = {
        name: NativeKey(**{**key, "choices": tuple(key.get("choices", ()))}) for name, key in snapshot["keys"].items()
    }
    return NativeSchema(snapshot["engine"], keys)
