"""Values that must not be seen: not in a rendered script, a log, a plan, or the arguments of a process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|APIKEY|CREDENTIALS?)\Z|(\A|_)KEY\Z|(\A|_)SECRET_", re.IGNORECASE)

_PASSWORD = re.compile(r"://[^\s/@:]*:[^\s/@]+@")

_ASSIGNMENT = re.compile(r"(--env=)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable of this name usually holds a secret, ``HF_TOKEN``, ``WANDB_API_KEY``; or this value does: an
    address with a password in it."""
    return _SECRET.search(name) is not None or _PASSWORD.search(value) is not None


def parted(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that may be shown, and those that may not."""
    shown = {name: value for name, value in variables.items() if not is_secret(name, value)}
    return shown, {name: value for name, value in variables.items() if name not in shown}


def masked(argv: Sequence[str]) -> tuple[str, ...]:
    """A command line that may be shown and kept: ``--env HF_TOKEN=value`` loses its value. It still works where
    the variable is set."""
    shown: list[str] = []
    for word in argv:
        match = _ASSIGNMENT.fullmatch(word)
        named = match and (match[1] or shown[-1:] == ["--env"])
        shown.append(f"{match[1] or ''}{match[2]}" if match and named and is_secret(match[2], match[3]) else word)
    return tuple(shown)
