"""A real engine goes on with fewer nodes when one is lost and none can take its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli, unmeasured
from fault_runs import INTERVAL, OnSlurm, curve, experiment, unbroken
from slurm_cluster import Cluster

from primus.runtime.jobs import JobDirectory


def test_the_curve_is_that_of_all_nodes_within_rounding(cli: Cli, cluster: Cluster, tmp_path: Path) -> None:
    cli.env = unmeasured(cli.env)
    whole = unbroken(cli, "torchtitan", tmp_path / "source")
    slurm = OnSlurm(cli, cluster)
    file = experiment("fewer", "torchtitan", tmp_path / "source", cli.home)
    run = slurm.start(file, "parallel.data_shard=auto", "resilience.min_nodes=1")
    run.wait_for_step(INTERVAL + 2)
    cluster.run("scontrol", "update", "nodename=n[3-4]", "state=drain", "reason=not for us")
    cluster.kill_node("n2")
    said = slurm.wait(run)
    history = run.history()
    assert history.status == "complete", said
    record = JobDirectory(run.directory / "jobs" / "1").record()
    assert [entry["nodes"] for entry in record if entry["event"] == "started"] == [["n1", "n2"], ["n1"]], said
    assert [attempt.world_size for attempt in history.attempts] == [2, 1]
    for (step, loss, norm), (_, wanted, wanted_norm) in zip(curve(history), whole, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-5), step
        assert norm == pytest.approx(wanted_norm, rel=1e-3), step
