"""Where Primus keeps what it makes for a user: environments, downloaded models, the embedded dataset, crash reports."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from primus.errors import EnvironmentFault


def primus_home() -> Path:
    """``$PRIMUS_HOME``, else ``$XDG_CACHE_HOME/primus``, else ``~/.cache/primus``. The directory may not exist yet."""
    chosen = os.environ.get("PRIMUS_HOME")
    if chosen:
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and os.path.join(os.environ["HOME"], ".cache"))
    if not cache:
        raise EnvironmentFault("neither PRIMUS_HOME nor HOME is set", remedy="set PRIMUS_HOME to a writable directory")
    return Path(cache, "primus").absolute()


def invoked_as() -> str:
    """The command as the user typed it, quoted for a shell: ``./primus-cli`` in a checkout, ``primus-cli`` on PATH."""
    return shlex.quote(os.environ.get("PRIMUS_INVOKED_AS", "primus-cli"))


def user_path(text: str) -> Path:
    """The path a person wrote, ``~`` and ``~name`` expanded where there is such a user. Never raises; whether the file
    system takes such a name shows when it is used (``os.path.exists`` and its like answer False for one it does not).
    """
    return Path(os.path.expanduser(text))


def unknown_user(path: Path) -> str:
    """``~name`` when `path`, from ``user_path``, is in the home of a user who does not exist; else empty."""
    return path.parts[0] if path.parts and path.parts[0].startswith("~") else ""
