"""Models, tokenizers and datasets from the Hugging Face Hub, kept under PRIMUS_HOME/hub with their revision pinned."""

from __future__ import annotations

import re
from pathlib import Path

from primus.home import primus_home

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(name: str) -> bool:
    """Whether `name` is written like a Hub id, ``org/name`` or ``org/name@revision``, and is no path that exists."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).expanduser().exists()


def split_id(name: str) -> tuple[str, str]:
    """(``org/name``, revision); the revision is ``main`` unless given after ``@``."""
    repository, _, revision = name.partition("@")
    return repository, revision or "main"


def fetched(name: str, file: str, kind: str = "model") -> Path | None:
    """Directory of the snapshot of Hub id `name` that holds `file`, if it was fetched before; no network, no imports.

    kind: ``model`` or ``dataset``. Follows the layout of the Hub's own cache: refs/REVISION names a commit,
    snapshots/COMMIT holds the files.
    """
    repository, revision = split_id(name)
    root = primus_home() / "hub" / f"{kind}s--{repository.replace('/', '--')}"
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    snapshot = root / "snapshots" / commit
    return snapshot if (snapshot / file).exists() else None
