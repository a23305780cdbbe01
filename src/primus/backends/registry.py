"""Finding backends: the entry points of group ``primus.backends``, our own among them."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from primus.backends.base import Backend
from primus.errors import ConfigError, EnvironmentFault

GROUP = "primus.backends"
BUILT_IN = {"torchtitan": "primus.backends.torchtitan:TorchTitanBackend"}
"""Known without metadata, so that a plain checkout on PYTHONPATH works without being installed."""


def names() -> list[str]:
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def get(name: str) -> Backend:
    """The backend called `name`. Raises ConfigError when there is none, EnvironmentFault when it fails to import."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in BUILT_IN:
        points[name] = EntryPoint(name, BUILT_IN[name], GROUP)
    if name not in points:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ConfigError(f"there is no backend '{name}'", where="backend", remedy=f"{hint}installed: {', '.join(names())}")
    module, _, attribute = points[name].value.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EnvironmentFault(
            f"backend '{name}' ({points[name].value}) cannot be imported: {error}", remedy="reinstall the package that provides it"
        ) from error
    backend: Backend = factory()
    return backend
