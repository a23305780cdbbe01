"""Saving 100 million parameters with AdamW: against a plain write with fsync, and how long a step stands still.

    python benchmarks/checkpoint.py [--directory DIR] [--saves 5]

One process trains a Llama of 100 M parameters on the CPU and saves after every second step, first in the foreground,
then in the background. After each save in the foreground the same number of bytes is written to one file and synced,
in the same directory. DIR (default: a temporary directory) needs about 5 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from primus.backends.base import Session
from primus.backends.torchtitan import TorchTitanBackend
from primus.config.load import load
from primus.events.types import CheckpointSaved, Event
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

EXPERIMENT = """
extends: [hardware/cpu]
name: checkpoint
model: {model_type: llama, vocab_size: 16384, hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 11,
  num_attention_heads: 12, max_position_embeddings: 2048}
data: {train: synthetic}
train: {steps: 10, global_batch_size: 1, seq_length: 64}
optimizer: {lr: 1.0e-5}
precision: fp32
checkpoint: {interval: 2, keep: 1}
"""
BLOCK = os.urandom(8 << 20)


def write_raw(path: Path, size: int) -> float:
    """Seconds to write and sync `size` bytes."""
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while file.tell() < size:
            file.write(BLOCK[: size - file.tell()])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def run(plan: Plan, saved: Callable[[CheckpointSaved], None]) -> None:
    directory = Path(plan.run_directory)
    attempt = directory / "attempts" / "1"
    attempt.mkdir(parents=True)

    def emit(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            saved(event)

    TorchTitanBackend().run(plan, Session(0, 0, 1, directory, attempt, 1, emit, lambda: False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--saves", type=int, default=5)
    arguments = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    speeds: list[tuple[float, float]] = []
    blocked: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        root = Path(folder)
        file = root / "checkpoint.yaml"
        file.write_text(EXPERIMENT, encoding="utf-8")

        def plan(background: bool) -> Plan:
            steps = [f"train.steps={2 * arguments.saves}", f"checkpoint.async={str(background).lower()}"]
            return make_plan(load(file, steps), nproc=1, run_directory=root / f"run-{background}")

        def in_foreground(event: CheckpointSaved) -> None:
            raw = write_raw(root / "raw", event.bytes)
            speeds.append((event.bytes / event.seconds / 1e6, event.bytes / raw / 1e6))
            print(
                f"step {event.step}: saved at {speeds[-1][0]:,.0f} MB/s, plain write at {speeds[-1][1]:,.0f}",
                flush=True,
            )

        def in_background(event: CheckpointSaved) -> None:
            blocked.append(event.blocked_seconds)
            print(f"step {event.step}: blocked {blocked[-1]:.3f} s, done after {event.seconds:.2f} s", flush=True)

        print(f"{plan(False).parameters:,} parameters")
        run(plan(False), in_foreground)
        run(plan(True), in_background)
    save, raw = (statistics.median(column) for column in zip(*speeds, strict=True))
    ratio = statistics.median(a / b for a, b in speeds)
    later = blocked[1:-1]  # the last one waits: the run ends with it
    print(f"\nforeground: {save:,.0f} MB/s, plain write + fsync {raw:,.0f} MB/s, ratio {ratio:.2f}   (goal: 0.60)")
    print(f"background: blocked {blocked[0]:.3f} s the first time, then {max(later):.3f} s at most   (goal: 0.15)")


if __name__ == "__main__":
    main()
