"""SIGKILL at arbitrary moments of training and saving: what was lost is made again, bit by bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from command_line import unmeasured
from gang import environment, free_port
from tiny import make

from primus.checkpoints import store
from primus.events.history import read_run
from primus.plan.plan import Plan

STEPS = 60


def launch(plan: Plan, attempt: int) -> subprocess.Popen[bytes]:
    directory = Path(plan.run_directory) / "attempts" / str(attempt)
    (directory / "logs").mkdir(parents=True)
    (directory / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "primus.runtime.worker", str(directory)]
    return subprocess.Popen(command, env=unmeasured({**os.environ, **environment(0, 1, free_port())}))


def steps_done(plan: Plan, attempt: int) -> int:
    path = Path(plan.run_directory) / "attempts" / str(attempt) / "events-rank0.jsonl"
    return path.read_text(encoding="utf-8").count("step_done") if path.exists() else 0


def kill_after(process: subprocess.Popen[bytes], plan: Plan, attempt: int, steps: int, delay: float) -> None:
    """SIGKILL `delay` seconds after the attempt's `steps`-th step, with nothing done at exit."""
    deadline = time.monotonic() + 120
    while steps_done(plan, attempt) < steps:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()


def test_killed_twice_losses_equal_the_unbroken_run(root: Path, dataset: Path) -> None:
    settings = {"train__steps": STEPS, "checkpoint__interval": 1, "checkpoint__async": True, "checkpoint__keep": 3}
    whole = make(root / "unbroken", dataset, **settings)
    assert launch(whole, 1).wait(timeout=200) == 0
    broken = make(root / "broken", dataset, **settings)
    generator = random.Random(time.time_ns())
    for attempt in (1, 2):
        delay = generator.uniform(0, 0.2)
        kill_after(launch(broken, attempt), broken, attempt, generator.randrange(1, 15), delay)
    assert launch(broken, 3).wait(timeout=200) == 0
    expected, found = read_run(root / "unbroken").steps, read_run(root / "broken").steps
    assert list(found.step) == list(expected.step) == list(range(1, STEPS + 1))
    assert list(found.loss) == list(expected.loss)
    assert list(found.grad_norm) == list(expected.grad_norm)
    newest, problems = store.newest_intact(root / "broken")
    assert newest is not None
    assert newest.step == STEPS
    assert problems == []
    assert store.verify(newest) == []
