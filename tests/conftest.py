"""Fixtures of the whole suite: the command line as a user starts it, with nothing of theirs touched."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import PLUGINS, TRIAL, Cli, clean_environment

ENGINES = ("backends/", "parity/", "checkpoints/test_convert.py", "runtime/test_engine.py")


def pytest_configure() -> None:
    """What a shell has its background jobs ignore, or nohup, would be ignored by everything the tests start."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two test processes, one makes all the runs of engines that fill a machine of two cores, the other the rest,
    file by file, so that what a file's tests share is made once."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        item.add_marker(pytest.mark.xdist_group("engines" if path.startswith(ENGINES) else path))


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


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """An experiment file for the backend ``counting``; its runs are in ``runs/trial`` of the same directory."""
    path = tmp_path / "trial.yaml"
    path.write_text(TRIAL.format(name="trial"))
    return path
