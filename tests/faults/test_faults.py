"""Whatever happens to a run, its curve is the one it would have had, bit for bit. ``make matrix`` tries every
combination and writes the table."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import Cli
from fault_runs import BATCH, Curve, Direct, Matrix, OnSlurm, Place, Run, curve, experiment
from faults import Case
from slurm_cluster import Cluster

from primus.checkpoints import skipped
from primus.checkpoints.skipped import Skipped
from primus.events.history import RunHistory


@pytest.fixture
def place(case: Case, cli: Cli, request: pytest.FixtureRequest) -> Iterator[Place]:
    if case.place == "direct":
        yield Direct(cli)
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    yield OnSlurm(cli, cluster)
    for daemon in cluster.daemons.values():  # a stopped one would not end
        with suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGCONT)


@pytest.fixture
def directory(case: Case, cli: Cli) -> Iterator[Path]:
    """The run's, as the fault wants it."""
    path = cli.home / "runs" / "struck"
    if case.fault.prepare:
        case.fault.prepare(path)
    yield path
    if (path / "checkpoints").is_mount():
        subprocess.run(["umount", "--lazy", path / "checkpoints"], check=True)


@pytest.fixture
def unbroken(case: Case, cases: list[Case], cli: Cli, matrix: Matrix) -> Curve:
    """The curve of the same run when nothing happens to it, made once, as long as any of `cases` needs it."""
    key = case.engine, case.fault.left_out
    if key not in matrix.curves:
        steps = max(other.fault.steps for other in cases if (other.engine, other.fault.left_out) == key)
        run = Run(cli.home / "runs" / "whole", lambda: None)
        if case.fault.left_out is not None:
            run.directory.mkdir(parents=True)
            known = Skipped(case.fault.left_out * BATCH, BATCH, case.fault.left_out + 1, "rollback", "as known", 1)
            skipped.write(run.directory, [known])
        direct = Direct(cli)
        run = direct.start(experiment(run.directory.name, case.engine, matrix.source, cli.home, steps=steps))
        said = direct.wait(run)
        matrix.curves[key] = curve(run.history())
        assert [step for step, _, _ in matrix.curves[key]] == list(range(1, steps + 1)), said
        assert len(run.history().attempts) == 1
    return matrix.curves[key][: case.fault.steps]


def test_the_curve_is_that_of_the_unbroken_run(
    case: Case, directory: Path, place: Place, matrix: Matrix, unbroken: Curve
) -> None:
    fault = case.fault
    file = experiment(
        directory.name, case.engine, matrix.source, directory.parents[1], steps=fault.steps, **fault.resilience
    )
    run = place.start(file)
    fault.strike(run)
    struck, reached = time.time(), run.step()
    said = place.wait(run)
    if case.place == "direct":
        assert run.ended() == fault.code, said
        assert fault.said in said
        run.wait_for_no_process()
    if case.again:
        assert run.history().status != "complete", said
        run = place.start(file)
        said = place.wait(run)
    history = run.history()
    assert history.status == "complete", said
    matrix.cells[str(case)] = "**differs**"
    assert curve(history) == unbroken
    matrix.cells[str(case)] = _told(case, history, struck, reached)


def _told(case: Case, history: RunHistory, struck: float, reached: int) -> str:
    """How long it took until a step was done that had not been done, and what was done again."""
    steps, resumed = history.steps, history.attempts[-1].resumed_from
    after = [at - struck for step, at in zip(steps.step, steps.time, strict=True) if step > reached and at > struck]
    words = ["equal", "given again" if case.again else "by itself"]
    words += [f"{min(after):.0f} s"] if after else []
    words += [f"{reached - resumed} steps lost"] if resumed is not None and resumed < reached else []
    return ", ".join(words)
