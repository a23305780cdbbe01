"""Nodes whose clocks are days apart train, restart and are measured as if they were not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from command_line import Cli, unmeasured
from fault_runs import INTERVAL, OnSlurm, curve, experiment, unbroken
from slurm_cluster import Cluster

AHEAD = 172_800
"""Seconds: two days."""

CLOCK = f"""\
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {{
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += {AHEAD};
    return failed;
}}

time_t time(time_t *seconds) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return seconds ? (*seconds = now.tv_sec) : now.tv_sec;
}}

int gettimeofday(struct timeval *seconds, void *zone) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    *seconds = (struct timeval){{now.tv_sec, now.tv_nsec / 1000}};
    return 0;
}}
"""
"""The time of day of a process, ahead; files keep the file server's, and seconds are as long as elsewhere."""


def test_a_run_is_killed_restarted_and_counted_all_the_same(cli: Cli, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    clock = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", clock, tmp_path / "clock.c"], check=True)
    cli.env = unmeasured(cli.env)
    whole = unbroken(cli, "torchtitan", tmp_path / "source")
    prolog = tmp_path / "prolog"
    prolog.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && echo export LD_PRELOAD={clock} || true\n')
    prolog.chmod(0o755)
    cli.env["SLURM_TASK_PROLOG"] = str(prolog)
    began = time.monotonic()
    slurm = OnSlurm(cli, cluster)
    run = slurm.start(experiment("apart", "torchtitan", tmp_path / "source", cli.home))
    run.wait_for_step(INTERVAL + 2)
    os.kill(run.ranks()[1], signal.SIGKILL)
    said = slurm.wait(run)
    passed = time.monotonic() - began
    history = run.history()
    assert history.status == "complete", said
    assert "the clocks of n2 and n1 are 2 d 00:00 h apart" in said
    assert "the processes are started again" in said
    assert curve(history) == whole
    assert history.goodput is not None
    assert history.goodput.useful > 0
    assert history.goodput.total < passed
