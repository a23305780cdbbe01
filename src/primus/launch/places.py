"""Where a command runs: the places of one command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from primus.launch.direct import Direct
from primus.launch.kubernetes import Kubernetes


@dataclass(frozen=True)
class Places:
    """One field a place; None: the command does not run in it. There is always ``direct``, the innermost."""

    direct: Direct = field(default_factory=Direct)
    kubernetes: Kubernetes | None = None
