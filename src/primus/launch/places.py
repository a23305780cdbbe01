"""Where a command runs: the places of one command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from primus.launch.container import Container
from primus.launch.direct import Direct
from primus.launch.kubernetes import Kubernetes
from primus.launch.slurm import Slurm


@dataclass(frozen=True)
class Places:
    """One field a place; None: the command does not run in it. There is always ``direct``, the innermost."""

    direct: Direct = field(default_factory=Direct)
    container: Container | None = None
    slurm: Slurm | None = None
    kubernetes: Kubernetes | None = None

    @property
    def nnodes(self) -> int:
        """On how many nodes the outermost place runs the command."""
        outer = self.slurm or self.kubernetes
        return outer.nodes if outer else self.direct.nnodes
