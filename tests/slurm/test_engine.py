"""A real engine as a job of a real Slurm."""

from __future__ import annotations

from pathlib import Path

from command_line import ROOT, Cli
from slurm_cluster import Cluster
from slurm_jobs import log, submit
from tiny import make_dataset

from primus.events.follow import read_run

QUICKSTART = ROOT / "examples" / "quickstart.yaml"


def test_torchtitan_trains_on_two_nodes(cli: Cli, cluster: Cluster, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data" / "chain")
    words = ["train", "pretrain", "--config", str(QUICKSTART), f"data.train={data}", "data.validation=0.05"]
    words += ["optimizer.schedule.warmup_steps=2", "train.seq_length=64", "train.steps=4", "train.micro_batch_size=2"]
    job = submit(cli, "-N", "2", "--", *words)
    run = tmp_path / "runs" / "quickstart"
    assert cluster.wait(job, "COMPLETED", "FAILED", seconds=200) == "COMPLETED", log(run)
    history = read_run(run)
    assert (history.status, list(history.steps.step)) == ("complete", [1, 2, 3, 4])
    assert "2 devices (cpu)" in log(run)
