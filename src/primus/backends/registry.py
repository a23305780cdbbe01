"""Finding backends: the entry points of group ``primus.backends``, our own among them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from primus.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    from primus.backends.base import Backend
    from primus.plan.plan import Plan

GROUP = "primus.backends"
BUILT_IN = {
    "maxtext": "primus.backends.maxtext:MaxTextBackend",
    "megatron": "primus.backends.megatron:MegatronBackend",
    "torchtitan": "primus.backends.torchtitan:TorchTitanBackend",
}
"""Known without metadata, so that a plain checkout on PYTHONPATH works without being installed."""


def names() -> list[str]:
    return sorted({*BUILT_IN, *_installed()})


def _installed() -> dict[str, str]:
    """Name -> ``module:attribute`` of every entry point. Reads the metadata of all packages: tens of milliseconds."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP)}


def get(name: str) -> Backend:
    """The backend called `name`. Raises ConfigError when there is none, EnvironmentFault when it fails to import."""
    target = BUILT_IN.get(name) or _installed().get(name)
    if target is None:
        import difflib

        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        remedy = f"{hint}installed: {', '.join(names())}"
        raise ConfigError(f"there is no backend '{name}'", where="backend", remedy=remedy)
    module, _, attribute = target.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EnvironmentFault(
            f"backend '{name}' ({target}) cannot be imported: {error}", remedy="reinstall the package that provides it"
        ) from error
    backend: Backend = factory()
    return backend


def ranks_per_node(plan: Plan) -> int:
    """The processes that the plan's backend has on a node: one a device, or one for all of the node's."""
    one = get(plan.experiment.backend).processes == "per_node"
    return 1 if one else plan.topology.nproc_per_node
