"""Fixtures of the whole suite: the command line as a user starts it, with nothing of theirs touched."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import PLUGINS, TRIAL, Cli, clean_environment
from slurm_cluster import Cluster, running
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from primus.runtime.exchange.exchanges import Exchanges

LONGEST = (
    "tests/parity/test_engines.py",
    "tests/backends/torchtitan",
    "tests/faults/test_faults.py",
    "tests/backends/test_conformance.py",
    "tests/slurm/test_recovery.py",
    "tests/launch/test_container_runs.py",
    "tests/runtime/test_replicas.py",
    "tests/runtime/test_engine.py",
    "tests/backends/maxtext/test_training.py",
    "tests/backends/test_anomalies.py",
    "tests/backends/maxtext/test_families.py",
    "tests/backends/maxtext/test_axes.py",
    "tests/parity/test_moving.py",
    "tests/config/test_import_maxtext.py",
    "tests/backends/megatron/test_checkpoints.py",
    "tests/backends/megatron/test_balance.py",
    "tests/backends/maxtext/test_kill.py",
    "tests/backends/megatron/test_prediction.py",
    "tests/backends/megatron/test_models.py",
    "tests/parity/test_torchtitan.py",
)
"""What takes a minute or more begins first, longest first: then all processes end at nearly the same time."""


def pytest_configure() -> None:
    """What a shell has its background jobs ignore, or nohup, would be ignored by everything the tests start."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Tests that share runs stay in one process where pytest runs in several."""
    config.option.loadscopereorder = False  # the order is that of the collection
    return ByRuns(config, log)


class ByRuns(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """The tests that share runs: those of a file, and those of TorchTitan's directory, whose runs are made once a
    session."""
    file = nodeid.partition("::")[0]
    directory = file.rpartition("/")[0]
    return directory if directory.endswith("torchtitan") else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where pytest runs in several processes: ``LONGEST``, then the groups with most tests."""
    if not hasattr(config, "workerinput"):
        return
    places = {name: place for place, name in enumerate(LONGEST)}
    sizes = Counter(group(item.nodeid) for item in items)
    items.sort(key=lambda item: (places.get(group(item.nodeid), len(places)), -sizes[group(item.nodeid)]))


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    env = {**clean_environment(tmp_path), **measured, "PRIMUS_PYTHON": sys.executable, "PYTHONPATH": str(PLUGINS)}
    runner = Cli(tmp_path, env, [])
    yield runner
    for process in runner.started:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def exchanges() -> Iterator[Exchanges]:
    """Processes that read and write engines' checkpoints, started once for all tests."""
    with Exchanges() as processes:
        yield processes


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """An experiment file for the backend ``counting``; its runs are in ``runs/trial`` of the same directory."""
    path = tmp_path / "trial.yaml"
    path.write_text(TRIAL.format(name="trial"))
    return path


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    """A real Slurm of four nodes, started once; ``cluster`` is what tests take."""
    with running(Path(tempfile.mkdtemp(prefix="primus-slurm-"))) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster, cli: Cli) -> Iterator[Cluster]:
    """The cluster with all nodes idle, to which ``cli`` submits."""
    whole_cluster.tidy()
    cli.env.update(whole_cluster.env)
    yield whole_cluster
    whole_cluster.run("scancel", "--me", check=False)
