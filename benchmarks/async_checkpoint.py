"""What a step costs that saves in the background: against the steps around it, on the disk as it is and on a slow one.

    python benchmarks/async_checkpoint.py [--backend torchtitan|megatron] [--saves 4] [--tokens 512] [--slow 100]
                                           [--directory DIR]

One process trains a Llama of 100 M parameters on the CPU and saves after every ``EVERY`` steps (1.2 GB). A step is what
lies between two ``step_done`` events: the one after a save begins holds its start and the copying aside. The slow disk
is this one, throttled to ``--slow`` MB/s by the kernel (cgroup v1, ``blkio.throttle.write_bps_device``; needs root):
the writer waits in fsync. DIR (default: a temporary directory, on a disk, not in memory) needs about 3 GB.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from primus.backends import registry
from primus.backends.base import Session
from primus.config.load import load
from primus.events.types import CheckpointSaved, Event, Notice, StepDone
from primus.plan.planner import make_plan

EXPERIMENT = """
extends: [hardware/cpu]
name: async-checkpoint
model: {{model_type: llama, vocab_size: 16384, hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 11,
  num_attention_heads: 12, max_position_embeddings: 2048}}
data: {{train: synthetic}}
train: {{steps: {steps}, global_batch_size: 1, seq_length: {tokens}}}
optimizer: {{lr: 1.0e-5, schedule: {{name: constant, warmup_steps: 0}}}}
precision: fp32
checkpoint: {{interval: {every}, keep: 1}}
"""
GROUPS = Path("/sys/fs/cgroup/blkio")
GOAL = 1.15


@contextmanager
def throttled(directory: Path, megabytes: float) -> Iterator[Path]:
    """A control group whose processes write so many megabytes a second to the disk under `directory`."""
    device = os.stat(directory).st_dev
    group = GROUPS / f"primus-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        limit = f"{os.major(device)}:{os.minor(device)} {int(megabytes * 1e6)}"
        (group / "blkio.throttle.write_bps_device").write_text(limit)
        yield group
    finally:
        group.rmdir()


@dataclass(frozen=True)
class Setting:
    """every: steps between two saves; tokens: in a step."""

    backend: str
    saves: int
    every: int
    tokens: int


def train(setting: Setting, run: Path, group: Path | None, results: multiprocessing.SimpleQueue) -> None:
    """In a process of its own: the seconds between ``step_done`` events, by step, and the spans of the saves."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    logging.disable(logging.WARNING)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    file = run / "experiment.yaml"
    file.write_text(EXPERIMENT.format(steps=setting.every * (setting.saves + 1), **asdict(setting)), encoding="utf-8")
    plan = make_plan(load(file, [f"backend={setting.backend}"]), nproc=1, run_directory=run)
    os.environ |= plan.env
    (run / "attempts" / "1").mkdir(parents=True)
    done: dict[int, tuple[float, float]] = {}
    saved: dict[int, tuple[float, CheckpointSaved]] = {}

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            done[event.step] = (time.perf_counter(), time.process_time())
        elif isinstance(event, CheckpointSaved):
            saved[event.step] = (time.perf_counter(), event)
        elif isinstance(event, Notice):
            print(event.message, flush=True)

    registry.get(setting.backend).run(plan, Session(0, 0, 1, run, run / "attempts" / "1", 1, emit, lambda: False))
    results.put((done, saved))


def measure(title: str, setting: Setting, root: Path, group: Path | None) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory(dir=root) as folder:
        process = context.Process(target=train, args=(setting, Path(folder), group, results))
        process.start()
        done, saved = results.get()
        process.join()
    seconds, processor = (
        {step: done[step][kind] - done[step - 1][kind] for step in done if step > 2} for kind in (0, 1)
    )
    begun = [step for step in saved if step % setting.every == 0 and step + 1 in seconds]
    saving = {step + 1: seconds[step + 1] for step in begun}
    writing = {
        step: seconds[step]
        for first in begun
        for step in range(first + 2, max(seconds) + 1)
        if done[step - 1][0] < saved[first][0] and step not in saving
    }
    idle = [value for step, value in seconds.items() if step not in saving and step not in writing]
    usual = statistics.median(idle)
    print(f"\n{title}: {len(idle)} steps without a save, median {usual:.2f} s")
    for step in begun:
        event = saved[step][1]
        print(
            f"  save of step {step}: next step {saving[step + 1]:.2f} s, ratio {saving[step + 1] / usual:.2f}; "
            f"blocked {event.blocked_seconds:.3f} s; {event.bytes / 1e9:.2f} GB on the disk after {event.seconds:.1f} s"
        )
    print(f"  median ratio {statistics.median(saving.values()) / usual:.2f}   (goal: {GOAL})")
    work = statistics.median(processor[step] for step in seconds if step not in saving and step not in writing)
    extra = statistics.median(processor[step] for step in saving) / work
    print(f"  processor seconds, threads that save included: {work:.2f} a step, ratio {extra:.2f}")
    if writing:
        ratio = statistics.median(writing.values()) / usual
        print(f"  the {len(writing)} steps after it while it is written: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torchtitan")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="steps between two saves")
    parser.add_argument("--tokens", type=int, default=512, help="in a step")
    parser.add_argument("--slow", type=float, default=100.0, help="MB/s of the slow disk")
    given = parser.parse_args()
    setting = Setting(given.backend, given.saves, given.every, given.tokens)
    with tempfile.TemporaryDirectory(dir=given.directory) as folder:
        root = Path(folder)
        measure("the disk as it is", setting, root, None)
        try:
            with throttled(root, given.slow) as group:
                measure(f"a disk of {given.slow:g} MB/s", setting, root, group)
        except OSError as error:
            print(f"\nno slow disk: it cannot be throttled here ({error})")


if __name__ == "__main__":
    main()
