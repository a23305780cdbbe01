"""The engines of the tests that run containers: started once a session, ended with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker_engine import Docker, Engine, engine
from docker_engine import podman as podman_engine


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    yield from engine(tmp_path_factory.mktemp("docker"))


@pytest.fixture(scope="session")
def podman() -> Iterator[Engine]:
    yield from podman_engine()
