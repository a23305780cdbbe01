"""The environment of the monitor, and nobody's own accounts."""

from __future__ import annotations

import os

import pytest

from primus.runtime.environments import provide


@pytest.fixture(scope="session")
def python() -> str:
    """Of the ``monitor`` environment, which is made if need be."""
    return provide("monitor")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody's own settings of MLflow and W&B."""
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("nobody")
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
