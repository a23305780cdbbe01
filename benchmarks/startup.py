"""How long until something happens: ``--help``, ``--dry-run``, and from the command to the end of the first step.

    python benchmarks/startup.py [--repeats 5] [--no-training]

The first step is compared, in turns, with the bare TorchTitan trainer under torchrun with the same native
configuration (see train_overhead.py). Wall-clock seconds, as a user waits them; the first call of each is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
extends: [models/tiny_llama, hardware/cpu]
name: startup
model: {init: native}
data: {train: synthetic}
train: {steps: 10, global_batch_size: 1, seq_length: 64}
optimizer: {lr: 1.0e-3}
precision: fp32
"""


def call(command: list[str], folder: Path, env: dict[str, str]) -> None:
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stderr[-4000:]}")


def wall(command: list[str], folder: Path) -> float:
    """As a user has it: in the environment of the command line, which the first call has made."""
    env = {name: value for name, value in os.environ.items() if name not in ("PRIMUS_PYTHON", "VIRTUAL_ENV")}
    began = time.monotonic()
    call(command, folder, env)
    return time.monotonic() - began


def first_step_of_ours(folder: Path, number: int) -> float:
    """From the command to the event of the first step."""
    command = [str(ROOT / "primus-cli"), "train", "pretrain", "--config", "startup.yaml", f"name=ours-{number}"]
    began = time.time()
    call(command, folder, {**os.environ, "PRIMUS_PYTHON": sys.executable})
    events = (folder / f"runs/ours-{number}/attempts/1/events-rank0.jsonl").read_text(encoding="utf-8")
    records = (json.loads(line) for line in events.splitlines())
    ended: float = next(record["time"] for record in records if record["event"] == "step_done")
    return ended - began


def first_step_of_bare(folder: Path, number: int) -> float:
    """From the command to the end of the first step of TorchTitan's own trainer."""
    attempt = folder / f"bare-{number}" / "attempts" / "1"
    attempt.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    began = time.time()
    call([*command, __file__, "--bare", str(attempt)], folder, {**os.environ, "PYTHONPATH": str(ROOT / "src")})
    return float((attempt / "first-step").read_text()) - began


def bare(attempt: Path) -> None:
    """The rank of the other side: bare TorchTitan, which notes when its first step has ended."""
    from train_overhead import bare as train

    from primus.backends.base import Session
    from primus.config.load import load
    from primus.plan.planner import make_plan

    plan = make_plan(load(attempt.parents[2] / "startup.yaml"), nproc=1, run_directory=attempt.parents[1])
    mark = attempt / "first-step"

    def note() -> None:
        if not mark.exists():
            mark.write_text(repr(time.time()))

    session = Session(0, 0, 1, attempt.parents[1], attempt, 1, lambda event: None, lambda: False)
    train(plan, session, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-training", action="store_true", help="only --help and --dry-run")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(arguments.bare)
        return
    train = [str(ROOT / "primus-cli"), "train", "pretrain", "--config", "startup.yaml"]
    rows: list[tuple[str, list[float], str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "startup.yaml").write_text(EXPERIMENT, encoding="utf-8")
        for label, command, goal in (
            ("--help", [train[0], "--help"], "0.3"),
            ("--dry-run", [*train, "--dry-run"], "0.8"),
        ):
            rows.append((label, [wall(command, folder) for _ in range(arguments.repeats + 1)][1:], goal))
        if not arguments.no_training:
            pairs = [
                (first_step_of_bare(folder, number), first_step_of_ours(folder, number))
                for number in range(arguments.repeats + 1)
            ][1:]
            rows.append(("first step, torchrun and bare TorchTitan", [pair[0] for pair in pairs], ""))
            rows.append(("first step, primus-cli", [pair[1] for pair in pairs], ""))
            rows.append(("  the difference", [ours - theirs for theirs, ours in pairs], "2.0"))
    print(f"{'seconds':44}{'median':>9}{'best':>9}{'goal':>7}")
    for label, values, goal in rows:
        print(f"{label:44}{statistics.median(values):>9.2f}{min(values):>9.2f}{goal:>7}")


if __name__ == "__main__":
    main()
