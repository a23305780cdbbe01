"""The lock of a run directory: the kernel's on one machine, the heartbeat between machines."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import ROOT

from primus.errors import RunDirectoryError
from primus.runtime import lock as locking
from primus.runtime.lock import Owner, RunLock, await_attempt, hold_as_worker, read_owner, wait_for_workers


def left_by(path: Path, host: str, pid: int, age: float) -> None:
    """A lock file as another machine shows it, whose last sign of life is `age` seconds old."""
    owner = {"host": host, "pid": pid, "token": "other", "started": 1.0}
    (path / "lock").write_text(json.dumps(owner))
    then = (path / "lock").stat().st_mtime - age
    os.utime(path / "lock", (then, then))


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)


def test_it_is_held_until_released_and_says_by_whom(tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on .* is running here"):
        RunLock(tmp_path)
    held.release()
    again = RunLock(tmp_path)
    assert read_owner(tmp_path / "lock") == again.owner
    again.release()
    assert read_owner(tmp_path / "lock") is None


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from primus.runtime.lock import RunLock\n"
        "RunLock(Path(sys.argv[1])); os._exit(9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    assert read_owner(tmp_path / "lock") is not None
    RunLock(tmp_path).release()


@pytest.mark.parametrize(("age", "alive"), [(1.0, True), (31.0, False)])
def test_one_of_our_name_and_process_number_was_in_another_pod(
    tmp_path: Path, without_flock: None, age: float, alive: bool
) -> None:
    left_by(tmp_path, socket.gethostname(), os.getpid(), age)
    if alive:
        with pytest.raises(RunDirectoryError, match="is running here"):
            RunLock(tmp_path)
    else:
        RunLock(tmp_path).release()


@pytest.mark.parametrize(("age", "alive"), [(1.0, True), (29.0, True), (31.0, False), (1e6, False)])
def test_another_machine_is_believed_while_its_heart_beats(tmp_path: Path, age: float, alive: bool) -> None:
    left_by(tmp_path, "another-machine", os.getpid(), age)
    if alive:
        with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on another-machine"):
            RunLock(tmp_path)
    else:
        RunLock(tmp_path).release()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = RunLock(tmp_path)
    os.utime(tmp_path / "lock", (1, 1))
    held.beat()
    first = (tmp_path / "lock").stat().st_mtime
    assert first > 1
    os.utime(tmp_path / "lock", (1, 1))
    held.beat()  # too soon after the last
    assert (tmp_path / "lock").stat().st_mtime == 1
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.0)
    held.beat()
    assert (tmp_path / "lock").stat().st_mtime > 1
    held.release()


def test_a_run_notices_that_another_took_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.0)
    (tmp_path / "run").mkdir()
    held = RunLock(tmp_path / "run")
    held.beat()
    shutil.rmtree(tmp_path / "run")
    held.beat()  # its ranks train on, and can save
    (tmp_path / "run").mkdir()
    other = RunLock(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=rf"process {os.getpid()} on \S+ has started a run here"):
        held.beat()
    held.release()
    other.beat()
    other.release()


def test_a_lock_that_looked_abandoned_is_left_to_who_took_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended job: its heart did not beat, and the file system carries no locks."""
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.0)
    held = RunLock(tmp_path)
    left_by(tmp_path, "another-machine", 7, 0.0)
    with pytest.raises(RunDirectoryError, match="process 7 on another-machine has started a run here"):
        held.beat()
    held.release()
    owner = read_owner(tmp_path / "lock")
    assert owner
    assert owner.host == "another-machine"


@pytest.mark.usefixtures("without_flock")
class TestWithoutKernelLocks:
    def test_a_living_process_is_respected_a_dead_one_is_not(self, tmp_path: Path) -> None:
        held = RunLock(tmp_path)
        with pytest.raises(RunDirectoryError, match="is running here"):
            RunLock(tmp_path)
        held.release()
        left_by(tmp_path, held.owner.host, 2**22 + 1, 0.0)
        RunLock(tmp_path).release()

    def test_of_two_at_once_one_wins(self, tmp_path: Path) -> None:
        results: list[object] = []
        gate = threading.Barrier(2)

        def attempt() -> None:
            gate.wait()
            try:
                results.append(RunLock(tmp_path))
            except RunDirectoryError as error:
                results.append(error)

        threads = [threading.Thread(target=attempt) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(type(result).__name__ for result in results) == ["RunDirectoryError", "RunLock"]

    def test_workers_are_not_waited_for(self, tmp_path: Path) -> None:
        assert hold_as_worker(tmp_path) is None
        wait_for_workers(tmp_path, lambda text: None, lambda: None, 0.0)


def test_workers_that_linger_are_waited_for_and_then_named(tmp_path: Path) -> None:
    said: list[str] = []
    beats: list[int] = []
    descriptor = hold_as_worker(tmp_path)
    assert descriptor is not None
    with pytest.raises(RunDirectoryError, match="worker processes of an earlier run are still here"):
        wait_for_workers(tmp_path, said.append, lambda: beats.append(1), 1.5)
    assert said == ["waiting for the processes of an earlier, killed run to end"]
    assert len(beats) > 5, "the lock must not look abandoned meanwhile"
    threading.Timer(0.3, os.close, [descriptor]).start()
    wait_for_workers(tmp_path, said.append, lambda: None, 10.0)


def test_a_torn_or_foreign_lock_file_is_no_owner(tmp_path: Path) -> None:
    for text in ("", "{", '{"host": 1}', "[]", "null", '{"host": "a", "pid": 1, "token": "t", "started": 0, "new": 1}'):
        (tmp_path / "lock").write_text(text)
        assert read_owner(tmp_path / "lock") is None
        RunLock(tmp_path).release()


def test_nodes_find_the_attempt_of_a_living_owner_only(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="node 0 has not started this run within 0 s"):
        await_attempt(tmp_path, 2, 0.3, lambda text: None)
    held = RunLock(tmp_path)
    held.announce(3, 2, "a:1")
    # unchanged since before we looked: for all we know what a dead run left
    with pytest.raises(RunDirectoryError, match="node 0 has not started"):
        await_attempt(tmp_path, 2, 0.3, lambda text: None)
    threading.Timer(0.3, os.utime, [tmp_path / "lock", (5, 5)]).start()
    found = await_attempt(tmp_path, 2, 5.0, lambda text: None)
    assert isinstance(found, Owner)
    assert (found.attempt, found.nnodes, found.rdzv) == (3, 2, "a:1")
    held.release()


def test_an_owner_that_has_not_written_its_name_yet_is_named_all_the_same(tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    written = held.path.read_bytes()
    held.path.write_bytes(b"")
    writer = threading.Timer(0.2, held.path.write_bytes, [written])
    writer.start()
    with pytest.raises(RunDirectoryError, match=rf"process {os.getpid()} on \S+, since .* is running here"):
        RunLock(tmp_path)
    writer.join()
    held.release()
