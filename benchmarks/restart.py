"""Seconds from SIGKILL of a rank to the end of the next step, and how long a hang is there before it is found.

    python benchmarks/restart.py [--repeats 3] [--hangs 3]

Restarts are compared, in turns, with bare TorchTitan under torchrun (--max-restarts, monitor interval 0.1 s), which
loads its own newest checkpoint: two replicas, gloo, the same model and native configuration (train_overhead.py).
Ours also hashes what it loads. Of torchrun, a restart may hang or end the agent; TORCH_DISABLE_SHARE_RDZV_TCP_STORE
keeps its ranks from the store of the start before, which makes that rare. What did not come back is counted. A hang is
a rank that gets SIGSTOP; it is found when the event that names it is written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
extends: [models/tiny_llama, hardware/cpu]
name: restart
model: {init: native}
data: {train: synthetic}
train: {steps: 1000000, global_batch_size: 2, seq_length: 64}
optimizer: {lr: 1.0e-4, schedule: {name: constant}}
parallel: {data_replicate: 2, data_shard: 1}
precision: fp32
checkpoint: {interval: 20, keep: 2}
resilience: {max_restarts: 1000}
monitor: {tensorboard: false}
"""
HANG_SECONDS = 5
WAIT_SECONDS = 90.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not come within {WAIT_SECONDS:.0f} s")
        time.sleep(0.02)


class Side:
    """A run of two ranks. marks: its finished steps as (start, Unix time), oldest first; pids: rank -> process."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        with (folder / "output").open("ab") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output)

    def pids(self) -> dict[int, int]:
        raise NotImplementedError

    def marks(self) -> list[tuple[int, float]]:
        raise NotImplementedError

    def saved(self) -> bool:
        raise NotImplementedError

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def restart(self) -> float | None:
        """Kill rank 1 some steps after a checkpoint; seconds until one was finished again, None if none was."""
        wait_for(self.saved, "a checkpoint")
        begun = len(self.marks())
        wait_for(lambda: len(self.marks()) > begun + 10, "ten steps")
        victim, before = self.pids()[1], self.marks()[-1][0]
        killed = time.time()
        os.kill(victim, signal.SIGKILL)

        def again() -> list[float]:
            return [when for start, when in self.marks() if start != before and when > killed]

        try:
            wait_for(lambda: again() or self.process.poll() is not None, "a step after the restart")
        except SystemExit:
            return None
        return again()[0] - killed if again() else None


class Ours(Side):
    def __init__(self, folder: Path, *more: str) -> None:
        self.run = folder / "runs" / "restart"
        train = ["train", "pretrain", "--config", "restart.yaml", *more]
        command = [str(ROOT / "primus-cli"), "direct", "--nproc", "2", "--", *train]
        super().__init__(command, folder, {**os.environ, "PRIMUS_PYTHON": sys.executable})

    def pids(self) -> dict[int, int]:
        return ranks_of(str(self.run))

    def records(self, writer: str) -> list[dict[str, object]]:
        path = self.run / f"attempts/1/events-{writer}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def marks(self) -> list[tuple[int, float]]:
        start, marks = 0, []
        for record in self.records("rank0"):
            start += record["event"] == "run_started"
            if record["event"] == "step_done":
                marks.append((start, float(str(record["time"]))))
        return marks

    def saved(self) -> bool:
        return any((self.run / "checkpoints").glob("step-*/manifest.json"))

    def hang(self) -> float:
        """Stop rank 1; seconds from its last step to the event that names it."""
        self.process.poll()
        before = len(self.found())
        wait_for(lambda: len(self.marks()) > 30, "steps")
        os.kill(self.pids()[1], signal.SIGSTOP)
        wait_for(lambda: len(self.found()) > before, "the hang's event")
        found = self.found()[-1]
        return found - max(when for _, when in self.marks() if when < found)

    def found(self) -> list[float]:
        return [float(str(r["time"])) for r in self.records("launcher0") if r.get("cause") == "hang"]


class Bare(Side):
    def __init__(self, folder: Path) -> None:
        self.attempt = folder / "bare" / "attempts" / "1"
        self.attempt.mkdir(parents=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["--max-restarts", "1000", "--monitor-interval", "0.1", __file__, "--bare", str(self.attempt)]
        super().__init__(
            command,
            folder,
            {
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                "OMP_NUM_THREADS": "1",
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            },
        )

    def pids(self) -> dict[int, int]:
        return {rank: int((self.attempt / f"pid-{rank}").read_text()) for rank in (0, 1)}

    def marks(self) -> list[tuple[int, float]]:
        path = self.attempt / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines]

    def saved(self) -> bool:
        return any(self.attempt.parents[1].rglob("step-*/.metadata"))


def ranks_of(run: str) -> dict[int, int]:
    """Rank -> process of the ranks of a run of ours."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"primus.runtime.worker\0{run}/".encode() in (entry / "cmdline").read_bytes():
                variables = dict(item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if item)
                found[int(variables[b"RANK"])] = int(entry.name)
        except OSError:
            continue
    return found


def bare(attempt: Path) -> None:
    """A rank of the other side, which notes when it has finished a step."""
    from train_overhead import bare as train

    from primus.backends.base import Session
    from primus.config.load import load
    from primus.plan.planner import make_plan

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (attempt / f"pid-{rank}").write_text(str(os.getpid()))
    plan = make_plan(load(attempt.parents[2] / "restart.yaml"), nproc=world, run_directory=attempt.parents[1])

    def note() -> None:
        if rank == 0:
            with (attempt / "marks").open("a") as marks:
                marks.write(f"{os.getpid()} {time.time()!r}\n")

    session = Session(rank, rank, world, attempt.parents[1], attempt, 1, lambda event: None, lambda: False)
    train(plan, session, note, save_every=20)


def median(values: list[float]) -> str:
    return f"{statistics.median(values):>9.2f}{min(values):>9.2f}{max(values):>9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, of two restarts each")
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(arguments.bare)
        return
    seconds: dict[type[Side], list[float | None]] = {Bare: [], Ours: []}
    hangs = []
    for _ in range(arguments.repeats):
        for side, found in seconds.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "restart.yaml").write_text(EXPERIMENT, encoding="utf-8")
                run = side(folder)
                try:
                    for _ in range(2):
                        found.append(run.restart())
                        if found[-1] is None:
                            break
                finally:
                    run.end()
    for _ in range(arguments.hangs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "restart.yaml").write_text(EXPERIMENT, encoding="utf-8")
            ours = Ours(folder, f"resilience.hang_timeout={HANG_SECONDS}s")
            try:
                hangs.append(ours.hang())
            finally:
                ours.end()
    print(f"{'seconds':44}{'median':>9}{'best':>9}{'worst':>9}  goal")
    came = {side: [value for value in found if value is not None] for side, found in seconds.items()}
    for side, name in ((Bare, "torchrun"), (Ours, "primus-cli")):
        gone = f"  {len(seconds[side]) - len(came[side])} of {len(seconds[side])} did not come back"
        print(f"{f'SIGKILL to the next step, {name}':44}{median(came[side]) if came[side] else ''}{gone}")
    if all(came.values()):
        print(f"{'  the medians apart':44}{statistics.median(came[Ours]) - statistics.median(came[Bare]):>9.2f}  1.0")
    if hangs:
        print(f"{f'last step to the hang found, at {HANG_SECONDS} s':44}{median(hangs)}  {HANG_SECONDS + 2}.0")


if __name__ == "__main__":
    main()
