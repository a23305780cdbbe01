"""The newer megatron-core beside the one of the lock: what Python 3.12 gets, put before everything else on the path."""

from __future__ import annotations

from pathlib import Path

import overlay as one_package

VERSION = "0.19.2"


def overlay() -> Path:
    """A directory with megatron-core 0.19.2 and nothing else, made once. Its Python requirement is set aside: what this
    project uses of it also runs on 3.11."""
    return one_package.overlay("megatron-core", VERSION)
